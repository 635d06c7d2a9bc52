"""Programs as models write them: competition mathematics, word problems, data wrangling, small algorithms."""

from __future__ import annotations

__all__ = ["PROGRAMS", "STDIN"]

STDIN: dict[str, str] = {
    "input": "3\n1 2 3\n",
    "stdin_read": "5 6\n7 8\n",
    "stdin_lines": "a 1\nb 2\n",
    "open_zero": "4 5\n",
}

PROGRAMS: dict[str, str] = {
    # Word problems (GSM8K style).
    "eggs": "eggs = 16\neaten = 3\nbaked = 4\nprice = 2\nprofit = (eggs - eaten - baked) * price\nprint(profit)",
    "annotated": (
        "total: int = 0\nprices: list[float] = [1.5, 2.25]\nfor p in prices:\n    total += p\nprint(f'{total:.2f}')"
    ),
    "percent": (
        "def discount(price, pct):\n    return price * (1 - pct / 100)\nprint(f'${discount(80, 25):,.2f}')\n"
        "discount(10, 10)"
    ),
    "compound": (
        "p, r, n = 1000, 0.05, 10\namounts = [round(p * (1 + r) ** y, 2) for y in range(1, n + 1)]\n"
        "print(amounts[-1], sum(amounts))"
    ),
    "main_guard": (
        "def main() -> None:\n    speeds = {'a': 3, 'b': 4}\n    print(sum(v * 2 for v in speeds.values()))\n\n"
        "if __name__ == '__main__':\n    main()"
    ),
    # Number theory and combinatorics (AIME style).
    "crt": (
        "from math import gcd\ndef crt(rs, ms):\n    x, m = 0, 1\n    for r, mod in zip(rs, ms):\n"
        "        while x % mod != r:\n            x += m\n        m = m * mod // gcd(m, mod)\n    return x, m\n"
        "print(*crt([2, 3, 2], [3, 5, 7]))"
    ),
    "sieve": (
        "def sieve(n):\n    flags = [True] * (n + 1)\n    flags[0] = flags[1] = False\n"
        "    for i in range(2, int(n ** 0.5) + 1):\n        if flags[i]:\n"
        "            flags[i*i::i] = [False] * len(flags[i*i::i])\n    return [i for i, f in enumerate(flags) if f]\n"
        "ps = sieve(1000)\nprint(len(ps), ps[-5:])"
    ),
    "digit_sum": (
        "print(sum(int(d) for d in str(2 ** 1000)))\nprint(max((str(n).count('7'), n) for n in range(500, 800)))"
    ),
    "divisors": "n = 2023 ** 3\nd = [i for i in range(1, 2024) if n % i == 0]\nprint(len(d), d)\nlen(d)",
    "modpow": "print(pow(3, 2024, 1000), pow(7, -1, 31), divmod(-7, 3), (-7) // 2, 7 % -3)",
    "permutations": (
        "from itertools import permutations, combinations, product\n"
        "print(sum(1 for p in permutations(range(6)) if all(p[i] != i for i in range(6))))\n"
        "print(len(list(combinations('ABCDE', 2))), [''.join(p) for p in product('ab', repeat=2)])"
    ),
    "coins": (
        "from functools import lru_cache\n@lru_cache(maxsize=None)\ndef ways(n, k=0, coins=(1, 5, 10, 25)):\n"
        "    if n == 0: return 1\n    if n < 0 or k == len(coins): return 0\n"
        "    return ways(n - coins[k], k) + ways(n, k + 1)\nprint(ways(100), ways.cache_info().currsize > 0)"
    ),
    "twenty_four": (
        "from itertools import permutations, product\ndef solve(nums):\n    for a, b, c, d in permutations(nums):\n"
        "        for o in product('+-*/', repeat=3):\n            expr = f'(({a}{o[0]}{b}){o[1]}{c}){o[2]}{d}'\n"
        "            try:\n                if abs(eval(expr) - 24) < 1e-9:\n                    return expr\n"
        "            except ZeroDivisionError:\n                continue\nprint(solve([4, 7, 8, 8]))"
    ),
    "eval_names": "x = 3\ndef f(a):\n    b = 2\n    return eval('a * b + x')\nprint(f(5), eval('y + 1', {'y': 4}))",
    "exec_text": "ns = {}\nexec('def g(n):\\n    return n + 1', ns)\nprint(ns['g'](4))\nexec('z = 5')\nprint(z)",
    "walrus": (
        "data = [1, 5, 12, 3]\nprint([y for x in data if (y := x * 2) > 5])\nif (n := len(data)) > 3:\n"
        "    print(f'{n=}')"
    ),
    "lattice": (
        "count = 0\nfor x in range(-10, 11):\n    for y in range(-10, 11):\n        if 0 < x * x + y * y <= 100:\n"
        "            count += 1\nprint(count)"
    ),
    "josephus": (
        "def j(n, k):\n    r = 0\n    for i in range(2, n + 1):\n        r = (r + k) % i\n    return r + 1\n"
        "print(j(41, 3))"
    ),
    "fibonacci_big": "a, b = 0, 1\nfor _ in range(300):\n    a, b = b, a + b\nprint(a)\nprint(len(str(a)))",
    "continued_fraction": (
        "from fractions import Fraction\ndef cf(x, n):\n    out = []\n    for _ in range(n):\n        q = int(x)\n"
        "        out.append(q)\n        x = x - q\n        if x == 0: break\n        x = 1 / x\n    return out\n"
        "print(cf(Fraction(649, 200), 10), Fraction('0.125'), Fraction(3, 9).limit_denominator(10))"
    ),
    "decimal": (
        "from decimal import Decimal, getcontext, ROUND_HALF_UP\ngetcontext().prec = 50\nprint(Decimal(2).sqrt())\n"
        "print(Decimal('2.675').quantize(Decimal('0.01'), rounding=ROUND_HALF_UP))"
    ),
    "statistics": (
        "import statistics as st\nd = [2, 4, 4, 4, 5, 5, 7, 9]\n"
        "print(st.mean(d), st.median(d), st.pstdev(d), st.mode(d), st.quantiles(d, n=4))"
    ),
    "complex": (
        "import cmath\nr = cmath.sqrt(-3)\nprint(r, abs(3 + 4j), (1 + 2j).conjugate(), round(cmath.phase(1j), 6))"
    ),
    "star_import": "from math import *\nprint(sqrt(2), pi, gcd(12, 18), comb(10, 3))",
    "monte_carlo": (
        "import random\nrandom.seed(42)\nn = 2000\n"
        "hits = sum(random.random() ** 2 + random.random() ** 2 <= 1 for _ in range(n))\n"
        "print(4 * hits / n, random.choice('abc'), random.sample(range(10), 3))"
    ),
    # Algorithms.
    "bfs": (
        "from collections import deque\ngrid = ['S.#', '..#', '#.E']\nq = deque([(0, 0, 0)])\nseen = {(0, 0)}\n"
        "while q:\n    r, c, d = q.popleft()\n    if grid[r][c] == 'E':\n        print(d)\n        break\n"
        "    for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0)):\n        nr, nc = r + dr, c + dc\n"
        "        if 0 <= nr < 3 and 0 <= nc < 3 and grid[nr][nc] != '#' and (nr, nc) not in seen:\n"
        "            seen.add((nr, nc))\n            q.append((nr, nc, d + 1))\nelse:\n    print('none')"
    ),
    "dijkstra": (
        "import heapq\ng = {'a': [('b', 4), ('c', 1)], 'c': [('b', 2), ('d', 5)], 'b': [('d', 1)], 'd': []}\n"
        "dist = {k: float('inf') for k in g}\ndist['a'] = 0\nh = [(0, 'a')]\nwhile h:\n    d, u = heapq.heappop(h)\n"
        "    if d > dist[u]:\n        continue\n    for v, w in g[u]:\n        if d + w < dist[v]:\n"
        "            dist[v] = d + w\n            heapq.heappush(h, (dist[v], v))\nprint(dist)"
    ),
    "knapsack": (
        "w, v, cap = [1, 3, 4, 5], [1, 4, 5, 7], 7\ndp = [[0] * (cap + 1) for _ in range(len(w) + 1)]\n"
        "for i in range(1, len(w) + 1):\n    for c in range(cap + 1):\n        dp[i][c] = dp[i - 1][c]\n"
        "        if w[i - 1] <= c:\n            dp[i][c] = max(dp[i][c], dp[i - 1][c - w[i - 1]] + v[i - 1])\n"
        "print(dp[-1][-1])"
    ),
    "counts_in_place": (
        "counts = [0] * 5\nd = {}\nfor x in [1, 2, 2, 4]:\n    counts[x] += 1\n    d[x] = d.get(x, 0) + 1\n"
        "    d[x] *= 2\nprint(counts, d)"
    ),
    "lcs": (
        "def lcs(a, b):\n    m = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]\n    for i, x in enumerate(a, 1):\n"
        "        for j, y in enumerate(b, 1):\n"
        "            m[i][j] = m[i-1][j-1] + 1 if x == y else max(m[i-1][j], m[i][j-1])\n    return m[-1][-1]\n"
        "print(lcs('AGGTAB', 'GXTXAYB'))"
    ),
    "queens": (
        "def queens(n):\n    def place(r, cols, d1, d2):\n        nonlocal count\n        if r == n:\n"
        "            count += 1\n            return\n        for c in range(n):\n"
        "            if c in cols or r + c in d1 or r - c in d2:\n                continue\n"
        "            place(r + 1, cols | {c}, d1 | {r + c}, d2 | {r - c})\n    count = 0\n"
        "    place(0, frozenset(), frozenset(), frozenset())\n    return count\nprint(queens(6))"
    ),
    "union_find": (
        "class DSU:\n    def __init__(self, n):\n        self.parent = list(range(n))\n        self.size = [1] * n\n"
        "    def find(self, x):\n        while self.parent[x] != x:\n"
        "            self.parent[x] = self.parent[self.parent[x]]\n            x = self.parent[x]\n        return x\n"
        "    def union(self, a, b):\n        a, b = self.find(a), self.find(b)\n        if a == b: return False\n"
        "        self.parent[b] = a\n        self.size[a] += self.size[b]\n        return True\nd = DSU(5)\n"
        "print(d.union(0, 1), d.union(1, 0), d.size)"
    ),
    "binary_search": (
        "import bisect\na = [1, 3, 3, 7]\nbisect.insort(a, 5)\n"
        "print(bisect.bisect_left(a, 3), bisect.bisect_right(a, 3), a)"
    ),
    "hanoi": (
        "moves = []\ndef hanoi(n, a='A', b='B', c='C'):\n    if n:\n"
        "        hanoi(n-1, a, c, b); moves.append((a, c)); hanoi(n-1, b, a, c)\nhanoi(4)\n"
        "print(len(moves), moves[0])"
    ),
    "deep_recursion": (
        "import sys\nsys.setrecursionlimit(10000)\ndef depth(n):\n    return 0 if n == 0 else 1 + depth(n - 1)\n"
        "print(depth(5000))"
    ),
    "game_of_life": (
        "from collections import Counter\ncells = {(0, 1), (1, 1), (2, 1)}\ndef step(cells):\n"
        "    n = Counter((x + dx, y + dy) for x, y in cells for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy)\n"
        "    return {c for c, k in n.items() if k == 3 or (k == 2 and c in cells)}\nprint(sorted(step(cells)))"
    ),
    "topological": (
        "from graphlib import TopologicalSorter\n"
        "print(list(TopologicalSorter({'d': {'b'}, 'b': {'a'}, 'a': set()}).static_order()))"
    ),
    "queue_bfs": (
        "from queue import Queue, PriorityQueue\nq = Queue()\nq.put(1); q.put(2)\nprint(q.get(), q.qsize())\n"
        "p = PriorityQueue()\np.put((2, 'b')); p.put((1, 'a'))\nprint(p.get()[1], p.empty())"
    ),
    # Classes.
    "private": (
        "class Account:\n    rate = 0.1\n    count = 0\n    def __init__(self, owner):\n        self._owner = owner\n"
        "        self.__balance = 0\n        Account.count += 1\n    def deposit(self, x):\n        if x <= 0:\n"
        "            raise ValueError('bad amount')\n        self.__balance += x\n        return self\n"
        "    @property\n    def balance(self):\n        return self.__balance\n    @staticmethod\n"
        "    def helper(): return 'h'\n    @classmethod\n    def make(cls, name): return cls(name)\n"
        "a = Account.make('x').deposit(5).deposit(7)\n"
        "print(a.balance, a._owner, Account.helper(), Account.count, a._Account__balance)\ntry:\n    a.deposit(-1)\n"
        "except ValueError as e:\n    print('error:', e, type(e).__name__)"
    ),
    "inheritance": (
        "from abc import ABC, abstractmethod\nclass Shape(ABC):\n    def __init__(self, name): self.name = name\n"
        "    @abstractmethod\n    def area(self): ...\n"
        "    def __str__(self): return f'{self.__class__.__name__} {self.name}: {self.area():.2f}'\n"
        "class Circle(Shape):\n    def __init__(self, r):\n        super().__init__('circle')\n        self.r = r\n"
        "    def area(self): return 3.14159 * self.r ** 2\nprint(Circle(2))\ntry:\n    Shape('x')\n"
        "except TypeError as e:\n    print('TypeError')\n"
        "print(issubclass(Circle, Shape), [c.__name__ for c in Circle.__mro__])"
    ),
    "metaclass_abc": (
        "from abc import ABCMeta, abstractmethod\nclass B(metaclass=ABCMeta):\n    @abstractmethod\n"
        "    def f(self): pass\nclass C(B):\n    def f(self): return 1\nprint(C().f(), type(C()).__name__)"
    ),
    "dataclass": (
        "from dataclasses import dataclass, field, asdict, replace\nfrom typing import Optional, List\n"
        "@dataclass(order=True)\nclass Item:\n    price: float\n    name: str = 'x'\n"
        "    tags: List[str] = field(default_factory=list, compare=False)\n    parent: Optional['Item'] = None\n"
        "    def __post_init__(self):\n        self.price *= 2\na, b = Item(1.5, 'a'), Item(2.0)\n"
        "a.tags.append('t')\nprint(a, a < b, asdict(b), replace(b, name='z'))"
    ),
    "frozen_dataclass": (
        "from dataclasses import dataclass, FrozenInstanceError\n@dataclass(frozen=True, slots=True)\nclass P:\n"
        "    x: int\n    y: int = 0\np = P(1)\ntry:\n    p.x = 2\nexcept FrozenInstanceError as e:\n"
        "    print('frozen', e)\nprint({p: 1}[P(1)], hash(p) == hash(P(1, 0)))"
    ),
    "future_annotations": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Node:\n"
        "    value: int\n    next: Node | None = None\nprint(Node(1, Node(2)))"
    ),
    "namedtuple": (
        "from collections import namedtuple\nP = namedtuple('P', 'x y', defaults=[0])\np = P(1)\n"
        "print(p, p._replace(y=5), p._asdict(), P._fields, P._make([7, 8]))"
    ),
    "typed_namedtuple": (
        "from typing import NamedTuple\nclass V(NamedTuple):\n    x: float\n    y: float = 1.0\n"
        "    def norm(self): return (self.x ** 2 + self.y ** 2) ** 0.5\nprint(V(3, 4).norm(), V(1))"
    ),
    "enum": (
        "from enum import Enum, IntEnum, Flag, auto\nclass Color(Enum):\n    RED = 1\n    GREEN = auto()\n"
        "    @classmethod\n    def _missing_(cls, value): return cls.RED\nclass P(IntEnum):\n    LOW = 1\n"
        "    HIGH = 2\nclass F(Flag):\n    A = auto()\n    B = auto()\n"
        "print(Color.RED, Color(9), Color['GREEN'].value, [c.name for c in Color], P.HIGH > P.LOW, F.A | F.B)"
    ),
    "operators": (
        "class V:\n    __slots__ = ('x', 'y')\n    def __init__(self, x, y): self.x, self.y = x, y\n"
        "    def __add__(self, o): return V(self.x + o.x, self.y + o.y)\n"
        "    def __mul__(self, k): return V(self.x * k, self.y * k)\n    __rmul__ = __mul__\n"
        "    def __eq__(self, o): return (self.x, self.y) == (o.x, o.y)\n"
        "    def __hash__(self): return hash((self.x, self.y))\n"
        "    def __repr__(self): return f'V({self.x}, {self.y})'\n"
        "    def __getitem__(self, i): return (self.x, self.y)[i]\n    def __len__(self): return 2\n"
        "    def __iadd__(self, o):\n        self.x += o.x\n        self.y += o.y\n        return self\n"
        "    def __bool__(self): return bool(self.x or self.y)\n    def __call__(self, k): return k * self.x\n"
        "a = V(1, 2)\na += V(1, 1)\nprint(a + 2 * a, a == V(2, 3), list(a), len(a), bool(V(0, 0)), a(10), {a: 1})"
    ),
    "iterator_class": (
        "class Countdown:\n    def __init__(self, n): self.n = n\n    def __iter__(self): return self\n"
        "    def __next__(self):\n        if self.n <= 0: raise StopIteration\n        self.n -= 1\n"
        "        return self.n + 1\nprint(list(Countdown(3)), sum(Countdown(4)))"
    ),
    "context_manager": (
        "from contextlib import contextmanager, suppress\nclass Timer:\n    def __enter__(self):\n"
        "        print('in')\n        return self\n    def __exit__(self, kind, value, tb):\n"
        "        print('out', kind.__name__ if kind else None)\n        return True\nwith Timer() as t:\n    1 / 0\n"
        "@contextmanager\ndef tag(n):\n    print(f'<{n}>')\n    yield n.upper()\n    print(f'</{n}>')\n"
        "with tag('b') as x, suppress(KeyError):\n    print(x)\n    {}['q']"
    ),
    "descriptor": (
        "class Positive:\n    def __set_name__(self, owner, name): self._name = '_' + name\n"
        "    def __get__(self, obj, kind=None):\n        return getattr(obj, self._name, 0)\n"
        "    def __set__(self, obj, value):\n        if value < 0: raise ValueError('negative')\n"
        "        setattr(obj, self._name, value)\nclass A:\n    n = Positive()\na = A()\na.n = 4\na.n += 1\n"
        "print(a.n, vars(a))\ntry:\n    a.n = -1\nexcept ValueError as e: print(e)"
    ),
    "getattr_class": (
        "class Cfg:\n    def __init__(self, **kw):\n        self.__dict__.update(kw)\n"
        "    def __getattr__(self, name): return f'no {name}'\n"
        "    def __repr__(self): return f'{type(self).__name__}({self.__dict__})'\nc = Cfg(a=1, b=2)\n"
        "print(c.a, c.zzz, c, hasattr(c, 'a'), getattr(c, 'b', 0))"
    ),
    "setattr_super": (
        "class Locked:\n    def __setattr__(self, name, value):\n        print('set', name)\n"
        "        super().__setattr__(name, value)\nclass T(tuple):\n"
        "    def __new__(cls, *xs): return super().__new__(cls, xs)\nl = Locked()\nl.x = 5\nprint(l.x, T(1, 2))"
    ),
    "builtin_subclass": (
        "class Stack(list):\n    def push(self, x): self.append(x)\n    def peek(self): return self[-1]\n"
        "class Default(dict):\n    def __missing__(self, k):\n        self[k] = v = len(self)\n        return v\n"
        "s = Stack([1]); s.push(2)\nd = Default()\nprint(s.peek(), s, d['a'], d['b'], d)"
    ),
    "custom_exception": (
        "class AppError(Exception):\n    def __init__(self, msg, code=0):\n        super().__init__(msg)\n"
        "        self.code = code\ntry:\n    try:\n        int('x')\n    except ValueError as e:\n"
        "        raise AppError('bad', 7) from e\nexcept AppError as e:\n"
        "    print(e, e.code, e.args, repr(e.__cause__))\nfinally:\n    print('done')"
    ),
    "except_star": (
        "try:\n    raise ExceptionGroup('g', [ValueError(1), TypeError(2)])\nexcept* ValueError as g:\n"
        "    print([str(e) for e in g.exceptions])\nexcept* TypeError as g:\n    print('types', len(g.exceptions))"
    ),
    "class_of_self": (
        "class A:\n    def clone(self): return self.__class__()\nclass B(A): pass\n"
        "print(type(B().clone()).__name__, isinstance(B(), A), isinstance(A, type), type(3) is int, type(A) is type)"
    ),
    "dynamic_type": (
        "Point = type('Point', (), {'x': 1, 'show': lambda self: self.x})\np = Point()\n"
        "print(p.show(), type(p).__name__)"
    ),
    "linked_list": (
        "class Node:\n    def __init__(self, val, next=None):\n        self.val, self.next = val, next\nhead = None\n"
        "for v in (3, 2, 1):\n    head = Node(v, head)\nprev = None\nwhile head:\n"
        "    head.next, prev, head = prev, head, head.next\nout = []\nwhile prev:\n    out.append(prev.val)\n"
        "    prev = prev.next\nprint(out)"
    ),
    "lru": (
        "from collections import OrderedDict\nclass LRU:\n"
        "    def __init__(self, cap): self.cap, self.d = cap, OrderedDict()\n    def get(self, k):\n"
        "        if k not in self.d: return -1\n        self.d.move_to_end(k)\n        return self.d[k]\n"
        "    def put(self, k, v):\n        self.d[k] = v\n        self.d.move_to_end(k)\n"
        "        if len(self.d) > self.cap: self.d.popitem(last=False)\nc = LRU(2)\n"
        "c.put(1, 1); c.put(2, 2); c.get(1); c.put(3, 3)\nprint(c.get(2), list(c.d))"
    ),
    # Functions, decorators, generators.
    "decorator": (
        "import functools, time\ndef timed(f):\n    @functools.wraps(f)\n    def inner(*args, **kwargs):\n"
        "        inner.calls += 1\n        t = time.perf_counter()\n        r = f(*args, **kwargs)\n"
        "        assert time.perf_counter() >= t\n        return r\n    inner.calls = 0\n    return inner\n@timed\n"
        'def add(a, b=1):\n    """Add."""\n    return a + b\n'
        "print(add(1), add(2, b=3), add.calls, add.__name__, add.__doc__)"
    ),
    "memo_attribute": (
        "def fib(n):\n    if n not in fib.cache:\n        fib.cache[n] = n if n < 2 else fib(n - 1) + fib(n - 2)\n"
        "    return fib.cache[n]\nfib.cache = {}\nprint(fib(50))"
    ),
    "generators": (
        "def primes():\n    n, found = 2, []\n    while True:\n        if all(n % p for p in found):\n"
        "            found.append(n)\n            yield n\n        n += 1\n"
        "from itertools import islice, takewhile, accumulate, chain, groupby\n"
        "print(list(islice(primes(), 8)), list(takewhile(lambda p: p < 12, primes())))\ndef both():\n"
        "    yield from [1, 2]\n    x = yield 3\n    print('got', x)\n    return 9\ng = both()\n"
        "print(next(g), next(g), next(g))\ntry:\n    g.send('hi')\nexcept StopIteration as s:\n    print(s.value)\n"
        "print(list(accumulate([1, 2, 3])), {k: list(v) for k, v in groupby('aab')})"
    ),
    "closures": (
        "def counter():\n    n = 0\n    def inc(by=1):\n        nonlocal n\n        n += by\n        return n\n"
        "    return inc\nc = counter()\nprint(c(), c(5), [f(2) for f in (lambda x, k=k: x * k for k in range(3))])"
    ),
    "starred": (
        "first, *middle, last = range(6)\ndef f(*a, k=0, **kw): return a, k, kw\n"
        "print(first, middle, last, f(*[1, 2], k=3, **{'z': 4}), [*middle, *'ab'], {**{'a': 1}, 'b': 2})\n"
        "(a, (b, c)), d = (1, (2, 3)), 4\nprint(a, b, c, d)"
    ),
    "match": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    y: int\ndef f(v):\n    match v:\n"
        "        case 0 | 1: return 'small'\n        case int(n) if n > 100: return f'big {n}'\n"
        "        case [a, b, *rest]: return f'seq {a} {b} {rest}'\n"
        "        case {'k': k, **more}: return f'map {k} {more}'\n        case P(x=0, y=y): return f'axis {y}'\n"
        "        case P(x, y): return f'pt {x},{y}'\n        case str() as s: return s.upper()\n"
        "        case None: return 'none'\n        case _: return 'other'\n"
        "for v in (1, 500, [1, 2, 3], {'k': 1, 'z': 2}, P(0, 5), P(1, 2), 'abc', None, 5.5):\n    print(f(v))"
    ),
    "match_enum": (
        "from enum import Enum\nclass C(Enum):\n    R = 1\n    G = 2\ndef f(c):\n    match c:\n"
        "        case C.R: return 'red'\n        case C.G: return 'green'\nprint(f(C.R), f(C.G))"
    ),
    "singledispatch": (
        "from functools import singledispatch\n@singledispatch\ndef show(x): return 'obj'\n@show.register\n"
        "def _(x: int): return 'int'\n@show.register(list)\ndef _(x): return 'list'\n"
        "print(show(1), show([]), show('s'))"
    ),
    "functools": (
        "from functools import reduce, partial, cached_property, cmp_to_key, cache\nimport operator\n"
        "print(reduce(operator.mul, range(1, 6)), partial(pow, 2)(5), sorted([3, 1, 2], "
        "key=cmp_to_key(lambda a, b: b - a)))\nclass A:\n    @cached_property\n    def v(self):\n"
        "        print('once')\n        return 1\na = A()\nprint(a.v + a.v)\n@cache\ndef f(n): return n\nprint(f(3))"
    ),
    "operator_getters": (
        "from operator import itemgetter, attrgetter, methodcaller\nd = [{'n': 'b', 'v': 2}, {'n': 'a', 'v': 2}]\n"
        "print(sorted(d, key=itemgetter('v', 'n')))\nclass P:\n    def __init__(self, x): self.x = x\n"
        "print([p.x for p in sorted([P(3), P(1)], key=attrgetter('x'))], methodcaller('upper')('abc'))"
    ),
    "globals_use": (
        "counter = 0\ndef bump():\n    global counter\n    counter += 1\nfor _ in range(3): bump()\n"
        "print(counter, 'counter' in globals(), 'nope' in globals(), sorted(locals())[:1])"
    ),
    "comprehensions": (
        "m = [[1, 2, 3], [4, 5, 6]]\n"
        "print([[r[i] for r in m] for i in range(3)], {x: x ** 2 for x in range(3)}, {c for c in 'aab'} == "
        "{'a', 'b'}, list(zip(*m)), [x for r in m for x in r if x % 2])"
    ),
    # Text.
    "format": (
        "print('{:>10}|{:<8}|{:^7}'.format('a', 'b', 'c'))\n"
        "print('{0} {1} {0} {name}'.format(1, 2, name='n'), '{:08.3f} {:,} {:e} {:%} {:#x}'.format(3.14159, "
        "1234567, 12345.678, 0.25, 255))\n"
        "print('%5d|%-5s|%.2f|%%' % (42, 'ab', 2.5), '{p[0]} {q[k]} {z.real}'.format(p=[7], q={'k': 8}, "
        "z=3), '{:{w}}'.format(5, w=4), '{!r}'.format('x'))"
    ),
    "format_map": (
        "t = '{name} is {age}'\n"
        "print(t.format_map({'name': 'Al', 'age': 3}), list(map('{:02d}'.format, range(3))), "
        "'a,b'.split(','), str.format('{}', 1))"
    ),
    "fstrings": (
        "x, name = 1234.5678, 'bob'\n"
        "print(f'{x:.2f} {x:>12,.1f} {name!r} {name:^9} {x=:.1f} {{}} {\"q\" + name} {max([1, 2])}')\nw = 10\n"
        "print(f'{name:>{w}}|')"
    ),
    "regex": (
        "import re\ns = 'John: 25, Mary: 31; x=3.5'\n"
        "print(re.findall(r'(\\w+): (\\d+)', s), re.sub(r'\\d', '#', s), re.split(r'[,;]\\s*', s))\n"
        "m = re.search(r'(?P<k>\\w+)=(?P<v>[\\d.]+)', s)\n"
        "print(m.group('k'), m.groupdict(), m.span(), re.compile('a+', re.I).match('AAb').group())"
    ),
    "wordcount": (
        "from collections import Counter, defaultdict\ntext = 'the cat sat on the mat the end'\n"
        "c = Counter(text.split())\nprint(c.most_common(2), sum(c.values()))\ng = defaultdict(list)\n"
        "for w in text.split(): g[len(w)].append(w)\nprint(dict(g), max(g, key=lambda k: len(g[k])))"
    ),
    "caesar": (
        "import string\ndef caesar(s, k):\n"
        "    t = str.maketrans(string.ascii_lowercase, string.ascii_lowercase[k:] + string.ascii_lowercase[:k])\n"
        "    return s.lower().translate(t)\n"
        "print(caesar('Hello', 3), string.digits, ''.join(reversed('abc')), string.Template('$a b').substitute(a=1))"
    ),
    "textwrap": (
        "import textwrap\nprint(textwrap.fill('a long line of words to wrap', 12))\nprint(textwrap.dedent('''\n"
        "    x\n      y\n''').strip())"
    ),
    "json": (
        'import json\nd = json.loads(\'{"a": [1, 2.5, null], "b": {"c": true}}\')\nd[\'a\'][0] += 1\n'
        "print(json.dumps(d, indent=2, sort_keys=True))\ntry:\n    json.loads('{')\n"
        "except json.JSONDecodeError as e:\n    print('bad', e.pos)"
    ),
    "csv": (
        "import csv, io\nrows = list(csv.DictReader(io.StringIO('name,age\\nAl,3\\nBo,5\\n')))\n"
        "print(rows, sum(int(r['age']) for r in rows))\nout = io.StringIO()\nw = csv.writer(out)\n"
        "w.writerow(['a', 'b c', 1])\nprint(out.getvalue().strip())"
    ),
    "bytes": (
        "import base64, hashlib, struct, binascii\n"
        "print(base64.b64encode(b'hi').decode(), hashlib.md5(b'a').hexdigest(), struct.unpack('<I', "
        "struct.pack('<I', 5)), binascii.hexlify(b'ab'), bytes([65, 66]).decode(), bin(10), hex(255), "
        "int('ff', 16), ord('a'), chr(98))"
    ),
    "pprint": (
        "from pprint import pprint\npprint({'b': [1, 2], 'a': {'x': (1, 2)}})\nprint(1, 2, sep='-', end='!\\n')\n"
        "print(*[1, 2, 3], sep=', ')"
    ),
    # Dates, numbers, copies.
    "datetime": (
        "from datetime import datetime, timedelta, date, timezone\nd = datetime(2024, 2, 28, 15, 30)\n"
        "print(d + timedelta(days=2), (date(2024, 12, 25) - date(2024, 1, 1)).days, d.strftime('%Y/%m/%d "
        "%H:%M'), d.weekday(), d.isoformat())\n"
        "print(datetime.strptime('2023-05-17', '%Y-%m-%d').date(), d.replace(tzinfo=timezone.utc).timestamp())"
    ),
    "calendar": (
        "import calendar\n"
        "print(calendar.isleap(2000), calendar.monthrange(2024, 2), calendar.day_name[calendar.weekday(2024, "
        "7, 4)], sum(calendar.monthrange(y, 2)[1] for y in range(1900, 2001)))"
    ),
    "copying": (
        "import copy\na = [[1], [2]]\nb, c = copy.copy(a), copy.deepcopy(a)\na[0].append(9)\n"
        "print(b, c, a is b, a == b, id(a) == id(a))"
    ),
    "sorting": (
        "people = [('Al', 30), ('Bo', 25), ('Cy', 30)]\n"
        "print(sorted(people, key=lambda p: (-p[1], p[0])), min(people, key=lambda p: p[1]), "
        "list(map(str.lower, 'AB')), list(filter(None, [0, 1])), any(x > 1 for x in [1]), sorted('bca', "
        "reverse=True))\npeople.sort(key=lambda p: p[0], reverse=True)\n"
        "print(people[0], list(reversed([1, 2])), list(enumerate('ab', 1)))"
    ),
    "sets_dicts": (
        "a, b = {1, 2, 3}, {2, 3, 4}\nprint(a & b, a | b, a - b, a ^ b, a <= b)\nd = {'x': 1}\n"
        "d.setdefault('y', []).append(2)\nd |= {'z': 3}\ndel d['x']\n"
        "for i, (k, v) in enumerate(d.items()): print(i, k, v)\n"
        "print(d.pop('q', None), list(d), {v: k for k, v in zip('ab', (1, 2))})"
    ),
    "slices": (
        "s = list(range(10))\ns[2:5] = [0]\ndel s[0]\n"
        "print(s[::-1], s[-3:], s[1:8:2], 'hello'[1:-1], slice(1, 5, 2).indices(10))\n"
        "m = [[0] * 3 for _ in range(2)]\nm[1][2] = 5\nm[0][0] -= 1\nprint(m)"
    ),
    "bit_tricks": (
        "x = 0b1011\nx |= 1 << 5\nx &= ~1\nx ^= 3\nx <<= 1\n"
        "print(x, bin(x).count('1'), x.bit_length(), (5).bit_count(), ~x, x >> 2)\ny = 7\n"
        "y **= 2; y //= 3; y %= 10; y -= 1\nprint(y)"
    ),
    "try_all": (
        "def f(x):\n    try:\n        r = 10 / x\n    except (ZeroDivisionError, TypeError) as e:\n"
        "        return type(e).__name__\n    else:\n        return r\n    finally:\n        print('fin')\n"
        "print(f(2), f(0), f('a'))\nassert f(5) == 2, 'bad'"
    ),
    "uncaught": "def inner(d):\n    return d['missing']\nprint('before')\ninner({})",
    "syntax_error": "print('x'\n",
    "underscore_names": (
        "_total = 0\n__seen = set()\n_, __ = 1, 2\nfor _ in range(3):\n    _total += 1\n"
        "def _helper(_x): return _x + _total\nprint(_helper(1), _, __)"
    ),
    "input": "n = int(input())\nxs = list(map(int, input().split()))\nprint(n, sum(xs))",
    "stdin_read": (
        "import sys\ndata = sys.stdin.read().split()\nprint(sum(map(int, data)))\nsys.stdout.write('done\\n')\n"
        "print('warn', file=sys.stderr)"
    ),
    "stdin_lines": "import sys\nd = {}\nfor line in sys.stdin:\n    k, v = line.split()\n    d[k] = int(v)\nprint(d)",
    "open_zero": "a, b = map(int, open(0).read().split())\nprint(a * b)",
    "sys_info": (
        "import sys\nm = sys.maxsize\nfor x in [3, 1, 2]:\n    m = min(m, x)\nprint(m, sys.version_info >= (3, 8))\n"
        "sys.set_int_max_str_digits(0)\nprint(len(str(2 ** 20000)))\nsys.exit()"
    ),
    "redirect": (
        "import io, contextlib\nbuf = io.StringIO()\nwith contextlib.redirect_stdout(buf):\n    print('inside')\n"
        "print(repr(buf.getvalue()))"
    ),
    "import_fallback": (
        "try:\n    import numpy_financial as npf\n    have = True\nexcept ImportError:\n    have = False\nprint(have)"
    ),
    "typing": (
        "from typing import TypeVar, Generic, Callable, Iterable, Protocol, TypedDict, Literal\nT = TypeVar('T')\n"
        "class Box(Generic[T]):\n    def __init__(self, v: T) -> None: self.v: T = v\n"
        "    def map(self, f: 'Callable[[T], T]') -> 'Box[T]': return Box(f(self.v))\n"
        "class M(TypedDict, total=False):\n    name: str\nclass Sized(Protocol):\n    def size(self) -> int: ...\n"
        "print(Box(2).map(lambda x: x + 1).v, M(name='x'))"
    ),
    # numpy.
    "numpy_basic": (
        "import numpy as np\na = np.arange(12).reshape(3, 4)\n"
        "print(a.sum(axis=0), a.T.shape, a[1:, ::2], a[a > 5].mean(), np.linspace(0, 1, 5))\na[0, 0] += 10\n"
        "a[1] *= 2\nprint(a, a.dtype)"
    ),
    "numpy_linalg": (
        "import numpy as np\nA = np.array([[2., 1.], [1., 3.]])\nb = np.array([3., 5.])\nx = np.linalg.solve(A, b)\n"
        "print(np.round(x, 4), np.round(np.linalg.det(A), 6), np.allclose(A @ x, b), np.linalg.matrix_rank(A))\n"
        "w, v = np.linalg.eigh(A)\nprint(np.round(w, 4))"
    ),
    "numpy_random": (
        "import numpy as np\nrng = np.random.default_rng(0)\n"
        "print(rng.integers(0, 10, 5), np.round(rng.normal(size=3), 4))\nnp.random.seed(1)\n"
        "print(np.random.randint(0, 5, 3), np.round(np.random.rand(2), 4))"
    ),
    "numpy_poly": (
        "import numpy as np\n"
        "print(np.roots([1, -3, 2]), np.polyfit([0, 1, 2], [1, 3, 7], 2).round(3), np.cumsum([1, 2, 3]), "
        "np.unique([3, 1, 3], return_counts=True), np.where(np.array([1, 0]) > 0, 'y', 'n'))\n"
        "from numpy.linalg import norm\n"
        "print(norm([3, 4]), np.vectorize(lambda t: t + 1)([1, 2]), np.percentile([1, 2, 3, 4], 50), "
        "np.dot([1, 2], [3, 4]))"
    ),
    # sympy.
    "sympy_solve": (
        "from sympy import symbols, solve, Eq, simplify, expand, factor\nx, y = symbols('x y')\n"
        "print(solve([Eq(x + y, 10), Eq(x - y, 2)], [x, y]), factor(x**2 - 5*x + 6), expand((x + 1)**3), "
        "simplify((x**2 - 1) / (x - 1)))"
    ),
    "sympy_calculus": (
        "import sympy as sp\nx = sp.Symbol('x', real=True)\n"
        "print(sp.diff(sp.sin(x) * x**2, x), sp.integrate(sp.exp(-x**2), (x, -sp.oo, sp.oo)), "
        "sp.limit(sp.sin(x) / x, x, 0), sp.series(sp.cos(x), x, 0, 6))\n"
        "print(sp.latex(sp.Rational(1, 3) * sp.sqrt(2)), sp.N(sp.pi, 20))"
    ),
    "sympy_number": (
        "from sympy import factorint, isprime, totient, divisors, nextprime, binomial, primerange, gcd\n"
        "from sympy.ntheory.modular import crt\n"
        "print(factorint(360), isprime(97), totient(36), divisors(28), nextprime(100), binomial(10, 4), "
        "list(primerange(1, 20)), crt([3, 5], [2, 3]))"
    ),
    "sympy_matrix": (
        "from sympy import Matrix, eye, Rational\nM = Matrix([[1, 2], [3, 4]])\n"
        "print(M.det(), M.inv(), M.eigenvals(), (M * eye(2))[1, 0], M.rref())"
    ),
    "sympy_strings": (
        "from sympy import sympify, S, parse_expr\n"
        "print(sympify('2*x + 3*x'), S('1/3') + S(1) / 6, parse_expr('sin(pi/6)'), sympify('sqrt(8)'), "
        "parse_expr('x + x', evaluate=False))"
    ),
    "sympy_lambdify": (
        "import sympy as sp\nx, y = sp.symbols('x y')\nf = sp.lambdify((x, y), sp.sqrt(x**2 + y**2), 'math')\n"
        "g = sp.lambdify(x, sp.sin(x) ** 2)\nprint(f(3, 4), round(float(g(1.0)), 6), sp.nsolve(sp.cos(x) - x, x, 1))"
    ),
    "sympy_star": (
        "from sympy import *\nx, n = symbols('x n')\n"
        "print(summation(1 / n**2, (n, 1, oo)), trigsimp(sin(x)**2 + cos(x)**2), Poly(x**2 + 2*x + "
        "1).roots() if hasattr(Poly(x), 'roots') else roots(x**2 + 2*x + 1), apart(1 / (x * (x + 1))))"
    ),
    "sympy_diophantine": (
        "from sympy.solvers.diophantine import diophantine\nfrom sympy.abc import x, y\n"
        "from sympy.solvers.inequalities import solve_univariate_inequality\n"
        "print(diophantine(2*x + 3*y - 5), solve_univariate_inequality(x**2 < 4, x))"
    ),
    "sympy_function": (
        "from sympy import Function, dsolve, Derivative\nfrom sympy.abc import t\nf = Function('f')\n"
        "print(dsolve(Derivative(f(t), t) - f(t), f(t)))"
    ),
    "mpmath": (
        "from mpmath import mp, mpf, quad, sin\nmp.dps = 30\nprint(mp.pi, mpf(1) / 3)\nprint(quad(sin, [0, mp.pi]))"
    ),
    # scipy.
    "scipy_optimize": (
        "from scipy.optimize import brentq, minimize, linprog\nimport numpy as np\n"
        "print(round(brentq(lambda x: x**3 - 2, 0, 2), 6), np.round(minimize(lambda v: (v[0] - 1)**2 + (v[1] "
        "+ 2)**2, [0, 0]).x, 3), linprog([-1, -2], A_ub=[[1, 1]], b_ub=[4]).fun)"
    ),
    "scipy_stats": (
        "from scipy import stats\nimport scipy.integrate as si\n"
        "print(round(stats.norm.cdf(1.96), 4), round(stats.binom.pmf(3, 10, 0.5), 6), round(si.quad(lambda "
        "x: x**2, 0, 3)[0], 6))\nfrom scipy.special import comb, gamma\nprint(comb(10, 3, exact=True), gamma(5))"
    ),
}
