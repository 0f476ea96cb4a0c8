"""A program that answers the routes of vLLM that the platform asks, as vLLM 0.32 does, and computes nothing.

It is started by the command line of vLLM: `vllm serve WEIGHTS … --port N`. An answer says the model that was asked and the process; an
adapter is refused whose configuration has the word `spoilt`. What vLLM itself does is for the tests that ask it.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BASE = sys.argv[sys.argv.index("--served-model-name") + 1] if "--served-model-name" in sys.argv else ""
LOADED: dict[str, str] = {}


class Routes(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        listed = [{"id": each} for each in (BASE, *LOADED)]
        self._answer(200, {"data": listed} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self._answer(*self._answered(asked))

    def _answered(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.path == "/v1/load_lora_adapter":
            return _load(asked["lora_name"], Path(asked["lora_path"], "adapter_config.json"))
        if self.path == "/v1/unload_lora_adapter":
            return (200, {}) if LOADED.pop(asked["lora_name"], None) else _refused(404, "cannot be found")
        if self.path == "/detokenize":
            return 200, {"prompt": " ".join(f"t{token}" for token in asked["tokens"])}
        if self.path == "/tokenize":
            count = 1 if "prompt" in asked else len(asked.get("chat_template_kwargs", ()))
            return (200, {"count": count}) if count else _refused(400, "no template")
        if asked["model"] not in (BASE, *LOADED):
            return _refused(404, f"The model {asked['model']} does not exist")
        return 200, {"model": asked["model"], "choices": [{"text": f"{asked['model']} of {os.getpid()}"}]}

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as the base has it
        """Print nothing."""


def _load(name: str, config: Path) -> tuple[int, dict[str, Any]]:
    if "--enable-lora" not in sys.argv or not config.is_file():
        return _refused(404, "No adapter found")
    if "spoilt" in config.read_text():
        return _refused(500, "size mismatch")
    if name in LOADED:
        return _refused(400, "has already been loaded")
    LOADED[name] = str(config)
    return 200, {}


def _refused(status: int, message: str) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": message}}


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Routes).serve_forever()
