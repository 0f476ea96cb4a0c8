"""Serves a GGUF file over OpenAI's API with llama.cpp, until it is ended; needs only the wheel `xllamacpp`.

Run by the interpreter of the engine's environment, without this project on its path. Requests need the key of the variable
`TOQUE_ENGINE_KEY`.
"""

import argparse
import os
import signal
from pathlib import Path

import xllamacpp


def main() -> None:
    """Load the weights, listen on loopback, and wait."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("--weights", "--name"):
        parser.add_argument(name, required=True)
    for name in ("--port", "--context", "--slots"):
        parser.add_argument(name, required=True, type=int)
    parser.add_argument("--embed", action="store_true")
    parser.add_argument("--share-weights", action="store_true")
    parser.add_argument("--adapter")
    parser.add_argument("--chat-template")
    parser.add_argument("--adapter-scale", type=float, default=1.0)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    server = xllamacpp.Server(_parameters(given))  # noqa: F841  # it serves as long as it lives
    while True:
        signal.pause()


def _parameters(given: argparse.Namespace) -> xllamacpp.CommonParams:
    """Settings of the server: every slot has the whole context, and keeps the prefixes it has seen."""
    found = xllamacpp.CommonParams()
    found.model.path = given.weights
    found.model_alias = {given.name}
    found.hostnames = ["127.0.0.1"]
    found.port = given.port
    found.api_keys = [os.environ.pop("TOQUE_ENGINE_KEY")]
    found.n_ctx = given.context * given.slots
    found.n_parallel = given.slots
    found.cont_batching, found.cache_prompt = True, True
    found.ctx_shift = False  # an answer ends where the context does, and never forgets its beginning
    found.ui, found.endpoint_slots = False, True
    # An engine that embeds answers chats too; the other way round it refuses.
    found.embedding, found.pooling_type = True, xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    if given.embed:  # whole texts at once, of any lengths: else a text's mean is that of its last part
        found.kv_unified = True
        found.n_batch = found.n_ubatch = max(given.context, found.n_ubatch)
    if given.threads:
        found.cpuparams.n_threads = found.cpuparams_batch.n_threads = given.threads
    if given.chat_template:
        found.chat_template = Path(given.chat_template).read_text()
    found.no_extra_bufts = given.share_weights  # as they are in the file, whose pages are in memory once
    if given.adapter:
        found.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(given.adapter, given.adapter_scale)]
    return found


if __name__ == "__main__":
    main()
