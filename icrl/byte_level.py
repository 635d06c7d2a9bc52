"""The alphabet in which byte-level vocabularies write bytes as characters."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["byte_alphabet", "word_bytes"]


def byte_alphabet() -> dict[str, int]:
    """Map the characters of byte-level vocabularies to bytes: printable Latin-1 is itself, the rest follows 255."""
    itself = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
    shifted = (byte for byte in range(256) if byte not in itself)
    return {chr(byte): byte for byte in itself} | {chr(256 + n): byte for n, byte in enumerate(shifted)}


def word_bytes(word: str, alphabet: Mapping[str, int]) -> bytes:
    r"""Return a vocabulary entry's bytes; an entry outside the alphabet stands for its own characters.

    Example:
        >>> word_bytes("Ġé", byte_alphabet())
        b' \xe9'
    """
    try:
        return bytes([alphabet[character] for character in word])
    except KeyError:
        return word.encode()
