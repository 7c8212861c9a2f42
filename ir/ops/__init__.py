"""All ops.  Importing this package registers them; a new file of ops is one line here."""

from omnic.ir.ops import argmax as argmax
from omnic.ir.ops import attention as attention
from omnic.ir.ops import block_attention as block_attention
from omnic.ir.ops import cache as cache
from omnic.ir.ops import cache_blocks as cache_blocks
from omnic.ir.ops import conv as conv
from omnic.ir.ops import elementwise as elementwise
from omnic.ir.ops import heads as heads
from omnic.ir.ops import host as host
from omnic.ir.ops import index as index
from omnic.ir.ops import linalg as linalg
from omnic.ir.ops import linear as linear
from omnic.ir.ops import logic as logic
from omnic.ir.ops import mla as mla
from omnic.ir.ops import moe as moe
from omnic.ir.ops import norms as norms
from omnic.ir.ops import quant as quant
from omnic.ir.ops import recurrent as recurrent
from omnic.ir.ops import reduce as reduce
from omnic.ir.ops import rope as rope
from omnic.ir.ops import shape as shape
