"""The similarity head, trained where the pairs are: a Flower app.

`task` learns and knows no Flower; the rest plugs it in.
"""
