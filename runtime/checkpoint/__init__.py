"""A model's files -> a checked description and named tensors.

In: a bundled name, a folder or a Hub id. Out: where its files are (`source`), what config.json says (`config`,
`config_keys`), every tensor under its state-spaces name (`reader`, `weight_files`, `tensors`) and the tokenizer. What
is not understood is refused by name; nothing from a file is executed.
"""
