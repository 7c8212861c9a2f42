"""How the products of a program are cut and read ahead on one processor: measured, kept, and used again.

``records`` is what is kept, ``lookup`` which of it applies, ``search`` how a value wins, ``products`` what a program
multiplies, ``timing`` one measured call, ``tune`` all of it for a module.
"""
