"""The Memory-Native family: other memories behind the same call, `(y, state) = module(x, state)`.

Importing it puts their layers into the table of blocks, so that `layer_types` may name them.
"""
