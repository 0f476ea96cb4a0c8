from toque.functions.retrieval import chunks_of

PAGE = """# Kitchen

The first words.

## Ovens

Heat slowly.

```text
# no heading

of 200 degrees
```

## Knives ##

Sharpen.
"""


def test_paragraphs_stand_under_their_headings_and_code_is_whole():
    found = chunks_of("kitchen.md", PAGE)
    assert [(each.heading, each.text) for each in found] == [
        ("Kitchen", "The first words."),
        ("Kitchen > Ovens", "Heat slowly.\n\n```text\n# no heading\n\nof 200 degrees\n```"),
        ("Kitchen > Knives", "Sharpen."),
    ]


def test_all_words_are_there_and_no_chunk_is_longer():
    words = [f"word{number}" for number in range(2_000)]
    text = "\n\n".join(" ".join(words[at : at + 77]) for at in range(0, len(words), 77))
    endless = "".join(f"x{number:04}" for number in range(500))
    found = chunks_of("long", f"{text}\n\n{endless}", max_length=500)
    assert max(len(each.text) for each in found) <= 500
    assert " ".join(each.text for each in found).split()[: len(words)] == words
    assert sum(each.text.count("x") for each in found) == 500


def test_a_chunk_whose_text_stays_has_its_key_wherever_it_stands():
    before = {each.text: each.key for each in chunks_of("kitchen.md", PAGE)}
    later = PAGE.replace("The first words.", "Other words.\n\n## Pans\n\nOil them.")
    after = {each.text: each.key for each in chunks_of("kitchen.md", later)}
    assert after["Sharpen."] == before["Sharpen."]
    assert set(after) - set(before) == {"Other words.", "Oil them."}
    other = {each.text: each.key for each in chunks_of("other.md", PAGE)}
    assert set(other.values()).isdisjoint(before.values())


def test_little_gives_little():
    assert chunks_of("empty", "") == []
    assert chunks_of("headings", "# One\n\n## Two\n") == []
    assert len(chunks_of("twice", "Same.\n\n# A\n\nSame.\n\n# A\n\nSame.")) == 2
