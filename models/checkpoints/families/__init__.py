"""One file a family: how its configuration becomes a spec, and where its weights lie."""
