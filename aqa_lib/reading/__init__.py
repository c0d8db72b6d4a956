"""Read what people have: rows in any format, questions in any form, sound to its end. Entered from `dataset` and below.

`audio` (streams), `dataset` and `prepare` (tables, forms, recordings) call it; it knows no model and no tensor.
"""
