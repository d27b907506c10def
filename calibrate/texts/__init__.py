"""Texts: documents, windows of tokens, and the passkeys hidden in them.

In: a SOURCE (a file, a folder, `-`, a data set on the Hub). Out: `Texts` that name where they came from (`sources`,
`files`, `hub`), windows that never straddle two documents (`windows`), the recall tasks (`passkey`,
`recall_tasks`), and prompts of tokens that hold a key (`prompts`).
"""
