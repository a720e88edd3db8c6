"""From texts to a pretrained model: a recipe of its own, corpora as streams of tokens, runs, and their page."""
