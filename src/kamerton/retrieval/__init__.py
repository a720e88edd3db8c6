"""Documents → passages → an index that is searched, and questions asked with what was found."""
