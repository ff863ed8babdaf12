"""Programs that look through all that they can reach in their process for texts of others."""

MARK = "9f3e7c-"
"""Start of a mark that `SCAN` looks for: two figures and a letter follow it."""
REACH = r"""
import ctypes, gc, inspect, sys, threading

call = ctypes.CDLL(None, use_errno=True).syscall
call.restype = ctypes.c_long

def raw(*arguments):
    return call(*[ctypes.c_long(x) for x in arguments])

def spans(start, size):
    # What is mapped of a range: where nothing is, the kernel gives us the very place that we ask for.
    got = raw(9, start, size, 0, 0x100022, -1, 0)
    if got > 0:
        raw(11, got, size)
    if got == start:
        return
    if size > 4096:
        yield from spans(start, size // 2)
        yield from spans(start + size // 2, size // 2)
    elif raw(21, start, 0) < 0 and ctypes.get_errno() != 14:  # a system call can read it
        yield start

def memory():
    # Every readable page of the address space, behind the page before it where they touch.
    size, before, last = 1 << 29, b"", 0
    starts = *range(0, 1 << 32, size), *range(0x55 << 40, 0x57 << 40, size), *range(0x7E << 40, 0x80 << 40, size)
    for page in [page for start in starts for page in spans(start, size)]:
        if raw(21, page, 0) < 0 and ctypes.get_errno() != 14:  # still there
            data = ctypes.string_at(page, 4096)
            yield before + data if page == last + 4096 else data
            before, last = data, page

def back(frame):
    while frame:
        yield frame
        frame = frame.f_back

def traced():
    try:
        1 / 0
    except ZeroDivisionError as error:
        yield from back(error.__traceback__.tb_frame)

def frames():
    yield from back(sys._getframe())
    yield from traced()
    yield from (frame for first in sys._current_frames().values() for frame in back(first))
    yield from (info.frame for info in inspect.stack())

def objects():
    gc.unfreeze()
    yield from gc.get_objects()

def texts(things, depth=3):
    # The texts in things and in what they hold, as bytes.
    for thing in things:
        if isinstance(thing, str):
            yield thing.encode("utf-8", "replace")
        elif isinstance(thing, (bytes, bytearray)):
            yield bytes(thing)
        elif depth and isinstance(thing, dict):
            yield from texts([*thing.keys(), *thing.values()], depth - 1)
        elif depth and isinstance(thing, (list, tuple, set)):
            yield from texts(list(thing), depth - 1)
        elif depth and not callable(thing) and hasattr(thing, "__dict__"):
            yield from texts([vars(thing)], depth - 1)

def held():
    yield from texts(x for frame in frames() for x in [*frame.f_locals.values(), *frame.f_globals.values()])
"""
"""What can be reached: memory through ctypes, frames (stack, tracebacks, threads, inspect), objects."""
SCAN = (
    REACH
    + r"""
first, rest = bytes([57, 102, 51, 101]), bytes([55, 99, 45])  # never one text

def marks(data):
    place = data.find(first)
    while place >= 0:
        if data[place + 4 : place + 7] == rest:
            yield data[place + 7 : place + 10].decode("latin-1")
        place = data.find(first, place + 1)

own = bytearray(first + rest) + b"99x"
found = {
    name: sorted({mark for data in source for mark in marks(data)})
    for name, source in (("memory", memory()), ("held", held()), ("objects", texts(objects())))
}
print(found)
"""
)
"""Prints the marks that it finds, and where. It makes the mark 99x itself: that one must be found in memory."""

HONEST = """# by hand: 9f3e7c
import hashlib
word = input()
print("the answer" + ": " + hashlib.sha256(word.encode()).hexdigest()[:16])
# 9f3e7c, the end
"""
"""A program whose outputs nobody can guess."""
COPY = r"""
import re

def copied():
    for data in WHERE:
        for program in re.findall(rb"[#] by hand: 9f3e7c\n[ -~\n]{50,300}[#] 9f3e7c, the end", data):
            return exec(program.decode(), {})
        for output in re.findall(rb"the answer[:] [0-9a-f]{16}", data):
            return print(output.decode())

copied()
"""
COPIES = [
    REACH + COPY.replace("WHERE", where)
    for where in (
        "texts(x for frame in back(sys._getframe()) for x in frame.f_locals.values())",
        "texts(x for frame in traced() for x in frame.f_locals.values())",
        "texts(x for info in inspect.stack() for x in info.frame.f_locals.values())",
        "texts(x for frame in sys._current_frames().values() for y in back(frame) for x in y.f_locals.values())",
        "texts(x for thing in objects() if inspect.isframe(thing) for x in thing.f_locals.values())",
        "memory()",
        "texts(objects())",
    )
]
"""Programs that run, or print the output of, an honest one that they find."""
