"""The text form of the IR: printer and parser."""

from omnic.ir.text.parser import parse_module
from omnic.ir.text.printer import print_function, print_module, print_node

__all__ = ["parse_module", "print_function", "print_module", "print_node"]
