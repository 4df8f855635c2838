"""The one virtual list, the panes made of it, and the lines above and below."""
