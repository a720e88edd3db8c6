"""What is served over HTTP: the labelling page, and what all pages share."""
