"""Tokens, one after another, and their text.

In: a prompt and options. Out: pieces as soon as they are certain: the loop over steps (`loop`), how a token is drawn
(`sampling`), how ids become text that is never taken back (`detokenize`).
"""
