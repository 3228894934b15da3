"""Number four: a program written for Modal, unmodified.

Run it with ``cadenza run examples/04_modal/modal_program.py --words "to be or not to be"``.
"""

import modal

app = modal.App("word-lengths")


@app.function()
def length(word: str) -> int:
    return len(word)


@app.function()
def total(words: list[str]) -> int:
    return sum(length.map(words))


@app.local_entrypoint()
def main(words: str = "the quick brown fox") -> None:
    print(total.remote(words.split()))
