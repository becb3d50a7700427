"""A second reading of docs/protocol.md in plain Python, with the standard library's SHA-256 and HMAC only.

It shares no code with the package, not even the curves and ciphers: what both compute alike, the document says. From
the secrets of a vector file it recomputes every message of the round. Slow, and no defence against side channels.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

P = 2**255 - 19
U64 = 1 << 64


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def lp(data: bytes | str) -> bytes:
    raw = data.encode() if isinstance(data, str) else data
    return len(raw).to_bytes(8, "big") + raw


def h(label: str, *parts: bytes | str) -> bytes:
    return sha256(b"".join(lp(part) for part in ("cloister/v1/" + label, *parts)))


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def hkdf(secret: bytes, salt: bytes, label: str, *parts: bytes | str) -> bytes:
    """RFC 5869, one block of SHA-256."""
    info = b"".join(lp(part) for part in ("cloister/v1/" + label, *parts))
    return hmac.digest(hmac.digest(salt, secret, "sha256"), info + b"\x01", "sha256")


# X25519 (RFC 7748)


def x25519(private: bytes, public: bytes) -> bytes:
    scalar = int.from_bytes(private, "little") & ~7 & (2**255 - 1) | 1 << 254
    u = int.from_bytes(public, "little") & (2**255 - 1)
    x2, z2, x3, z3, swap = 1, 0, u, 1, 0
    for bit in reversed(range(255)):
        swap ^= scalar >> bit & 1
        if swap:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = scalar >> bit & 1
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a, b * b, d * a, c * b
        x3, z3 = (da + cb) ** 2 % P, u * (da - cb) ** 2 % P
        x2, z2 = aa * bb % P, (aa - bb) * (aa + 121665 * (aa - bb)) % P
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


BASE = (9).to_bytes(32, "little")


# Ed25519 (RFC 8032), signing only: signatures are deterministic, so equal bytes are verified bytes

L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
Point = tuple[int, int, int, int]


def _add(p: Point, q: Point) -> Point:
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, i = b - a, d - c, d + c, b + a
    return e * f % P, g * i % P, f * g % P, e * i % P


def _times(scalar: int, point: Point) -> Point:
    found: Point = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            found = _add(found, point)
        point, scalar = _add(point, point), scalar >> 1
    return found


def _encode(point: Point) -> bytes:
    inverse = pow(point[2], P - 2, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


GY = 4 * pow(5, P - 2, P) % P
GX = 15112221349535400772501151409588531511454012693041857206046113283949847762202
G: Point = (GX, GY, 1, GX * GY % P)


def public_key(seed: bytes) -> bytes:
    scalar = int.from_bytes(hashlib.sha512(seed).digest()[:32], "little") & ~7 & (2**254 - 1) | 1 << 254
    return _encode(_times(scalar, G))


def sign(seed: bytes, label: str, body: bytes) -> bytes:
    message = lp("cloister/v1/" + label) + body
    digest = hashlib.sha512(seed).digest()
    scalar = int.from_bytes(digest[:32], "little") & ~7 & (2**254 - 1) | 1 << 254
    r = int.from_bytes(hashlib.sha512(digest[32:] + message).digest(), "little") % L
    big_r = _encode(_times(r, G))
    k = int.from_bytes(hashlib.sha512(big_r + _encode(_times(scalar, G)) + message).digest(), "little") % L
    return big_r + ((r + k * scalar) % L).to_bytes(32, "little")


# ChaCha20-Poly1305 (RFC 8439)


def _chacha_block(key: bytes, counter: int, nonce: bytes) -> bytes:
    def rotate(value: int, by: int) -> int:
        return (value << by | value >> (32 - by)) & 0xFFFFFFFF

    raw = b"expand 32-byte k" + key + counter.to_bytes(4, "little") + nonce
    start = [int.from_bytes(raw[i : i + 4], "little") for i in range(0, 64, 4)]
    s = list(start)
    columns = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
    diagonals = [(0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
    for _ in range(10):
        for a, b, c, d in columns + diagonals:
            for x, y, z, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                s[x] = (s[x] + s[y]) & 0xFFFFFFFF
                s[z] = rotate(s[z] ^ s[x], by)
    return b"".join(((x + y) & 0xFFFFFFFF).to_bytes(4, "little") for x, y in zip(s, start, strict=True))


def chacha20_poly1305(key: bytes, nonce: bytes, plain: bytes, aad: bytes) -> bytes:
    blocks = -(-len(plain) // 64)
    stream = b"".join(_chacha_block(key, 1 + i, nonce) for i in range(blocks))
    text = bytes(x ^ y for x, y in zip(plain, stream, strict=False))
    one_time = _chacha_block(key, 0, nonce)
    r = int.from_bytes(one_time[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    padded = b"".join(part + bytes(-len(part) % 16) for part in (aad, text))
    padded += len(aad).to_bytes(8, "little") + len(text).to_bytes(8, "little")
    accumulator = 0
    for i in range(0, len(padded), 16):
        accumulator = (accumulator + int.from_bytes(padded[i : i + 16] + b"\x01", "little")) * r % (2**130 - 5)
    tag = (accumulator + int.from_bytes(one_time[16:32], "little")) % 2**128
    return text + tag.to_bytes(16, "little")


# AES-256 in counter mode (FIPS 197, SP 800-38A)


def _times_x(a: int) -> int:
    return (a << 1 ^ 0x11B) & 0xFF if a & 0x80 else a << 1


def _sbox() -> list[int]:
    box, p, q = [0x63] * 256, 1, 1
    while True:
        p ^= _times_x(p)  # times 3
        q ^= q << 1
        q ^= q << 2
        q ^= q << 4
        q &= 0xFF
        if q & 0x80:
            q ^= 0x09  # divided by 3
        box[p] = q ^ 0x63
        for by in range(1, 5):
            box[p] ^= (q << by | q >> (8 - by)) & 0xFF
        if p == 1:
            return box


SBOX = _sbox()


def _round_keys(key: bytes) -> list[bytes]:
    words, constant = [key[i : i + 4] for i in range(0, 32, 4)], 1
    for i in range(8, 60):
        word = words[-1]
        if i % 8 == 0:
            word = bytes(SBOX[b] for b in word[1:] + word[:1])
            word, constant = bytes([word[0] ^ constant]) + word[1:], _times_x(constant)
        elif i % 8 == 4:
            word = bytes(SBOX[b] for b in word)
        words.append(bytes(x ^ y for x, y in zip(words[i - 8], word, strict=True)))
    return [b"".join(words[i : i + 4]) for i in range(0, 60, 4)]


def aes256_stream(key: bytes, size: int) -> bytes:
    """The keystream from counter block 0 on."""
    keys, out = _round_keys(key), b""
    for counter in range(-(-size // 16)):
        state = [x ^ y for x, y in zip(counter.to_bytes(16, "big"), keys[0], strict=True)]
        for number in range(1, 15):
            state = [SBOX[state[(i + 4 * (i % 4)) % 16]] for i in range(16)]
            if number < 14:
                mixed = []
                for column in (state[i : i + 4] for i in range(0, 16, 4)):
                    every = column[0] ^ column[1] ^ column[2] ^ column[3]
                    mixed += [column[i] ^ every ^ _times_x(column[i] ^ column[(i + 1) % 4]) for i in range(4)]
                state = mixed
            state = [x ^ y for x, y in zip(state, keys[number], strict=True)]
        out += bytes(state)
    return out[:size]


# The protocol


def merkle_root(data: bytes) -> bytes:
    def root(leaves: list[bytes]) -> bytes:
        if len(leaves) == 1:
            return leaves[0]
        k = 1 << (len(leaves) - 1).bit_length() - 1
        return sha256(b"\x01" + root(leaves[:k]) + root(leaves[k:]))

    return root([sha256(b"\x00" + data[i : i + 65536]) for i in range(0, len(data), 65536)])


def polynomial(secret: int, coefficients: list[int], x: int) -> int:
    """The highest power's coefficient comes first."""
    value = 0
    for coefficient in [*coefficients, secret]:
        value = (value * x + coefficient) % P
    return value


class Reference:
    """Recomputes a round from the "inputs" of a vector file. Attributes: the fields of that file, by name."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self.inputs, self.plan = inputs, json.loads(inputs["plan"])
        self.bits, self.carrier = self.plan["bits"], 64 if self.plan["bits"] == 64 else 32
        self.cohort, gone = self.plan["sites"], inputs["lost"]
        self.u1 = [s for s in self.cohort if s not in gone.get("keys", [])]
        self.u2 = [s for s in self.u1 if s not in gone.get("shares", [])]
        self.u3 = [s for s in self.u2 if s not in gone.get("masked", [])]
        self.hub = bytes.fromhex(inputs["coordinator"])
        self.sites = {s: self._site(values) for s, values in inputs["sites"].items()}
        self.messages: dict[str, Any] = {}
        self.payloads: dict[str, str] = {}
        self._open()
        self._keys()
        self._shares()
        self._masked()
        self._agree()
        self._sum()

    def _site(self, values: dict[str, Any]) -> dict[str, Any]:
        def number(text: str) -> int:
            return int.from_bytes(bytes.fromhex(text), "little")

        coefficients = {k: [number(text) for text in values[f"{k}_coefficients"]] for k in ("beta", "sigma")}
        secrets = {k: number(values[k]) for k in ("beta", "sigma")}
        return {"id": bytes.fromhex(values["identity"]), "channel": bytes.fromhex(values["channel"]),
                "checkpoint": bytes.fromhex(values["checkpoint"]), "charge": values["charge"],
                "chosen": bytes.fromhex(values["chosen"]), "secrets": secrets,
                "coefficients": coefficients}  # fmt: skip

    def _send(self, who: bytes, label: str, body: bytes) -> str:
        return (lp("cloister/v1/" + label) + body + sign(who, label, body)).hex()

    def _listed(self, entries: list[bytes]) -> bytes:
        return u32(len(entries)) + b"".join(entries)

    def _open(self) -> None:
        plan, roster = self.inputs["plan"].encode(), sha256(self.inputs["roster"].encode())
        previous = bytes.fromhex(self.inputs["previous"])
        run, query = bytes.fromhex(self.plan["run"]), bytes.fromhex(self.plan["query"])
        place = u64(self.plan["round"]), u32(self.plan["attempt"])
        self.ctx = h("ctx", "cloister/v1", run, *place, roster, sha256(plan), query, previous)
        self.messages["open"] = self._send(self.hub, "open", self.ctx + roster + previous + lp(plan))

    def _keys(self) -> None:
        self.messages["keys"], entries = {}, []
        for name in self.u1:
            site = self.sites[name]
            sigma, beta = (site["secrets"][k].to_bytes(32, "little") for k in ("sigma", "beta"))
            site["mask"] = hkdf(sigma, self.ctx, "mask-key")
            site["publics"] = x25519(site["channel"], BASE), x25519(site["mask"], BASE)
            own = lp(name) + b"".join(site["publics"]) + h("commit", self.ctx, name, beta)
            own += lp(site["checkpoint"]) + u64(site["charge"])
            self.messages["keys"][name] = self._send(site["id"], "keys", self.ctx + own)
            entries.append(own + sign(site["id"], "keys", self.ctx + own))
        self.h1 = h("u1", self.ctx, *entries)
        body = self.ctx + self._listed(entries) + lp(bytes.fromhex(self.inputs["agreement"]))
        self.messages["list-of-keys"] = self._send(self.hub, "list-of-keys", body)

    def _dealt(self, kind: str, owner: str, holder: str) -> bytes:
        site, x = self.sites[owner], 1 + self._holders(owner).index(holder)
        return polynomial(site["secrets"][kind], site["coefficients"][kind], x).to_bytes(32, "little")

    def _holders(self, owner: str) -> list[str]:
        chosen = self.sites[owner]["chosen"]
        return [site for i, site in enumerate(self.u1) if chosen[i // 8] >> i % 8 & 1]

    def _owners(self, holder: str) -> list[str]:
        return [owner for owner in self.u2 if holder in self._holders(owner)]

    def _partners(self, name: str) -> list[str]:
        if len(self.buckets) > 1:
            around = next(bucket for bucket in self.buckets if name in bucket)
        else:
            around = self._holders(name) + self._owners(name)
        return [other for other in self.u2 if other != name and other in around]

    def _shares(self) -> None:
        seed = h("partition", bytes.fromhex(self.plan["query"]), *self.u1)
        order, g = sorted(self.u1, key=lambda name: h("place", seed, name)), self.plan["buckets"]
        self.buckets = [sorted(order[i::g]) for i in range(g)]
        self.messages |= {"shares": {}, "ciphertexts": {}}
        sent: dict[tuple[str, str], bytes] = {}
        for name in self.u2:
            site, others = self.sites[name], [s for s in self._holders(name) if s != name]
            for other in others:
                shared = x25519(site["channel"], self.sites[other]["publics"][0])
                key = hkdf(shared, self.h1, "chan", name, other)
                plain = self._dealt("beta", name, other) + self._dealt("sigma", name, other)
                aad = h("share-aad", self.ctx, self.h1, name, other)
                sent[name, other] = chacha20_poly1305(key, bytes(12), plain, aad)
            body = self.ctx + self.h1 + lp(name) + lp(site["chosen"])
            body += self._listed([sent[name, other] for other in others])
            self.messages["shares"][name] = self._send(site["id"], "shares", body)
        names = self._listed([lp(name) + lp(self.sites[name]["chosen"]) for name in self.u2])
        for name in self.u2:
            relayed = self._listed([sent[other, name] for other in self._owners(name) if other != name])
            body = self.ctx + self.h1 + lp(name) + names + relayed
            self.messages["ciphertexts"][name] = self._send(self.hub, "ciphertexts", body)

    def _stream(self, key: bytes, size: int) -> list[int]:
        width = self.carrier // 8
        raw = aes256_stream(key, size * width)
        return [int.from_bytes(raw[i : i + width], "little") for i in range(0, len(raw), width)]

    def _masked(self) -> None:
        self.messages["masked"], self.roots = {}, []
        sharers = [part for name in self.u2 for part in (name, self.sites[name]["chosen"])]
        self.h2 = h("u2", self.ctx, self.h1, *sharers)
        self.words: dict[str, list[int]] = {}
        for name in self.u3:
            site, words = self.sites[name], list(self.inputs["words"][name])
            beta = site["secrets"]["beta"].to_bytes(32, "little")
            seeds = [(hkdf(beta, self.ctx, "self", name), 1)]
            for other in self._partners(name):
                shared = x25519(site["mask"], self.sites[other]["publics"][1])
                seed = hkdf(shared, self.h1, "pair", self.ctx, min(name, other), max(name, other))
                seeds.append((seed, 1 if name < other else -1))
            for seed, direction in seeds:
                masks, modulus = self._stream(seed, len(words)), 1 << self.bits
                words = [(word + direction * mask) % modulus for word, mask in zip(words, masks, strict=True)]
            self.words[name] = words
            packed = sum(word << i * self.bits for i, word in enumerate(words))
            payload = packed.to_bytes(-(-len(words) * self.bits // 8), "little")
            self.payloads[name] = payload.hex()
            common = self.ctx + self.h1 + self.h2 + u64(len(words)) + u32(self.bits)
            own = lp(name) + merkle_root(payload)
            entry = own + sign(site["id"], "upload", common + own)
            parts = [merkle_root(payload[i : i + (1 << 22)]) for i in range(0, len(payload), 1 << 22)]
            self.messages["masked"][name] = self._send(site["id"], "masked", common + entry + self._listed(parts))
            self.roots.append((name, merkle_root(payload), entry))
        listed = common + self._listed([entry for _, _, entry in self.roots])
        self.messages["survivors"] = self._send(self.hub, "survivors", listed)

    def _agree(self) -> None:
        self.messages |= {"consistent": {}, "unmask": {}}
        fields = [part for name, root, _ in self.roots for part in (name, root)]
        self.h3, entries = h("u3", self.ctx, self.h1, self.h2, *fields), []
        for name in self.u3:
            site, body = self.sites[name], self.ctx + self.h3 + lp(name)
            self.messages["consistent"][name] = self._send(site["id"], "consistent", body)
            entries.append(lp(name) + sign(site["id"], "consistent", body))
            kinds = [("beta" if owner in self.u3 else "sigma", owner) for owner in self._owners(name)]
            shares = self._listed([self._dealt(kind, owner, name) for kind, owner in kinds])
            self.messages["unmask"][name] = self._send(site["id"], "unmask", body + shares)
        self.messages["consistency"] = self._send(self.hub, "consistency", self.ctx + self.h3 + self._listed(entries))

    def _sum(self) -> None:
        self.total, self.sum_roots = [], []
        for bucket in self.buckets:
            plain = [self.inputs["words"][name] for name in self.u3 if name in bucket]
            total = [sum(column) % (1 << self.bits) for column in zip(*plain, strict=True)]
            self.total.append(total)
            self.sum_roots.append(merkle_root(b"".join(w.to_bytes(self.carrier // 8, "little") for w in total)))
        signatures = {name: entry[-64:] for name, _, entry in self.roots}
        receipt = {
            "ctx": self.ctx.hex(), "roster": sha256(self.inputs["roster"].encode()).hex(), "h1": self.h1.hex(),
            "h2": self.h2.hex(), "sum_roots": [root.hex() for root in self.sum_roots],
            "consistency": sha256(bytes.fromhex(self.messages["consistency"])).hex(),
            "state": self.inputs["state"], "previous": self.inputs["previous"],
            "plan": self.plan, "u1": self.u1, "u2": self.u2, "u3": self.u3, "words": len(self.total[0]),
            "uploads": [[name, root.hex(), signatures[name].hex()] for name, root, _ in self.roots],
        }  # fmt: skip
        body = json.dumps(receipt, sort_keys=True, separators=(",", ":")).encode()
        self.messages["receipt"] = (lp(body) + lp(sign(self.hub, "receipt", body))).hex()
