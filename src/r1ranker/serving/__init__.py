"""Rankers over HTTP. In: requests as data. Out: answers in the shapes that clients know. Thin over `ranking`."""
