"""The model of docs/model.md a second time: slow, plain Python objects, no code shared with `replay/`.

It exists to disagree. Every rule here was written from the documentation, with dictionaries, lists and
booleans where the engine has bits, heaps and linked arrays.
"""
