"""What a hostile program does once it holds something that reaches the host."""

from __future__ import annotations

__all__ = ["with_builtins", "with_os"]

# What a program does once it holds a module `os`, or builtins `b`.
USE_OS = """
def use(os):
    try:
        fd = os.open("@SECRET@", os.O_RDONLY)
        print(os.read(fd, 100))
    except Exception as error:
        print("read:", error)
    try:
        os.close(os.open("@TARGET@/made", os.O_WRONLY | os.O_CREAT))
    except Exception as error:
        print("make:", error)
    try:
        os.kill(@VICTIM@, 9)
    except Exception as error:
        print("kill:", error)
    try:
        os.system("touch @TARGET@/system")
    except Exception as error:
        print("system:", error)
    print(dict(os.environ))
"""
USE_BUILTINS = """
def use(b):
    b = b if isinstance(b, dict) else b.__dict__
    try:
        print(b["open"]("@SECRET@").read())
    except Exception as error:
        print("read:", error)
    try:
        b["open"]("@TARGET@/made", "w").write("x")
    except Exception as error:
        print("make:", error)
    try:
        b["__import__"]("os").system("touch @TARGET@/system")
    except Exception as error:
        print("system:", error)
"""


def with_os(code: str) -> str:
    return USE_OS + code


def with_builtins(code: str) -> str:
    return USE_BUILTINS + code
