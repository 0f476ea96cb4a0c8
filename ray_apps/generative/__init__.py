"""Language models behind OpenAI's API: engines in processes of their own, and the door that stands before them.

The door decides who may ask, which version answers and what it may cost, passes the engine's stream on as it comes, and
logs it. It never reads weights itself, and imports neither torch nor transformers.
"""
