"""Gives recorded sessions back: as a conversation on a terminal, as packets in a pcapng file.

In: sessions, messages and chunks from the store. Out: text that is safe to print, files. Nothing here changes a record.
"""
