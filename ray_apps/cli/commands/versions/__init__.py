"""Commands for models and their versions: what is registered, files, cards, prompts and signatures."""
