"""From raw files to a chat in one recipe: the single stages in turn, each resumable, and one page for all of them."""
