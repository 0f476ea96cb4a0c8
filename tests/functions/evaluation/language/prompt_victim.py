"""Work of a process that answers a table by a language model, to be killed."""

from toque.functions import Context, use_context
from toque.functions.evaluation.batch_inference import predict_batch
from toque.registry import TableSnapshot, open_store


def answer(url: str, dataset: TableSnapshot, shard_rows: int, output: str) -> None:
    """Answer a table in a store, as a process of its own."""
    with use_context(Context(store=open_store(url), store_url=url)):
        predict_batch("chat", dataset, version=1, shard_rows=shard_rows, output=output)
