"""The specs that ship with omnic (package data), their JSON Schema, and the weights of the small ones."""
