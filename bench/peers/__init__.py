"""What others use today, written anew from its formulas: what the ops are timed against.

A peer imports what it needs (numba, say) when its module is imported, and a benchmark imports that
module only when it runs the peer.
"""
