"""Ways to reach an index, and to join several.

protocol   what a retriever and an index are
opening    from a directory or an address to a retriever
thread     an index in a thread of this process
pool       an index in processes of its own, which share its memory map
remote     a server that speaks the `/retrieve` protocol
fusion     several retrievers as one
rounds     queries that wait are searched together
tantivy, dense   indexes of other kinds
"""
