"""How long a multiprocessor's scheduler takes for disassembled code: a small in-order model, none of it measured.

Each of four schedulers issues at most one instruction a clock, of a warp whose next instruction finds its operands
ready and its pipe free; warps issue in order. It goes on with the warp it issued last while that is as early as any.
Guessed, from what is published of Hopper and its predecessors:

- an instruction holds its pipe and gives its result after the clocks of `PIPES`; a load from memory takes 500 clocks
  whatever its address, other warps and its width, a read of shared memory 30;
- a copy to shared memory is waited for where the code says so; barriers, branches and fences cost their issue alone;
- every scheduler always has all the warps that registers and shared memory allow: no launch, no tail, no waiting for
  bandwidth, no instruction cache.

So it shows what a change of schedule, latency or occupancy does; its milliseconds are not a promise.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

SCHEDULERS = 4
REGISTERS, SHARED, MOST_WARPS, MOST_PROGRAMS = 65536, 227 * 1024, 64, 32  # of a multiprocessor, sm_90
LONG = 4096  # instructions a warp, so that the first wait does not count
MACS = 512  # dense bf16 multiply-adds a clock and scheduler
# pipe -> opcodes, clocks a warp's instruction holds it, clocks to its result. A pipe of "fma" is what is not named.
PIPES = {
    "int": ("IADD3 ISETP LOP3 SHF LEA PRMT SEL FSEL FMNMX FSETP MOV VIADD VIADDMNMX PLOP3 IABS SGXT F2FP", 2, 5),
    "imad": ("IMAD", 2, 5),
    "uniform": ("UIADD3 UISETP UMOV USHF ULEA UIMAD USEL USGXT ULOP3 ULDC R2UR S2UR", 2, 8),
    "special": ("MUFU FRND F2F F2I I2F", 8, 20),
    "shared": ("LDS STS LDSM STSM SHFL LDC S2R", 4, 30),
    "memory": ("LDG STG LDGSTS ATOMG RED REDG", 4, 500),
    "tensor": ("HMMA HGMMA", 4, 33),
    "fma": ("", 1, 4),
}
_PIPE = {opcode: pipe for pipe, (opcodes, _, _) in PIPES.items() for opcode in opcodes.split()}
_NO_RESULT = {"STG", "STS", "STSM", "RED", "REDG", "LDGSTS", "BRA", "EXIT", "BAR", "NOP", "DEPBAR", "LDGDEPBAR"} | {
    "MEMBAR", "FENCE", "WARPGROUP", "BSSY", "BSYNC", "WARPSYNC",
}  # fmt: skip
_ONLY_PREDICATES = {"ISETP", "FSETP", "UISETP", "PLOP3", "UPLOP3"}
_REGISTER = re.compile(r"\b(UR|R|UP|P)(\d+)(\.64)?")


@dataclass(frozen=True)
class Instruction:
    """opcode and modifiers, what it waits for and what it makes ("R7", "P0", "UR4")."""

    text: str
    opcode: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    groups: int = 0  # of a DEPBAR: asynchronous copies that need not have arrived

    @property
    def macs(self) -> int:
        """Multiply-adds of a tensor-core instruction, of one warp."""
        if found := re.match(r"HGMMA\.64x(\d+)x(\d+)", self.text):
            return 64 * int(found[1]) * int(found[2]) // 4  # four warps share it
        if found := re.match(r"HMMA\.(\d{2})(\d)(\d+)", self.text):
            return int(found[1]) * int(found[2]) * int(found[3])
        return 0


def opcode(text: str) -> str:
    """The first word of an instruction, without its guard and modifiers."""
    return re.split(r"[. ]", re.sub(r"^@!?U?P\w+\s+", "", text))[0]


def parse(text: str) -> Instruction:
    """One line of nvdisasm."""
    found = re.match(r"(@!?U?P\w+\s+)?(.*)", text)
    assert found is not None  # it matches anything
    guard, body = found.groups()
    name, op = body.split(" ")[0], opcode(body)
    operands = [part.strip() for part in body[len(name) :].split(",")]
    made = 0
    if op not in _NO_RESULT:
        while made < len(operands) and re.fullmatch(r"U?P(\d|T)", operands[made]):
            made += 1
        if op not in _ONLY_PREDICATES:
            made += 1  # a register, perhaps with carries after it
            while op in ("IADD3", "UIADD3", "LEA", "ULEA", "IMAD") and made < len(operands) - 2:
                if not re.fullmatch(r"U?P\d", operands[made]):
                    break
                made += 1
    writes = [r for part in operands[:made] for r in _registers(part, _width(name))]
    reads = [r for i, part in enumerate(operands[made:]) for r in _registers(part, _read_width(name, op, i))]
    groups = int(operands[1], 16) if op == "DEPBAR" else 0
    return Instruction(name, op, tuple(reads + _registers(guard or "", 1)), tuple(writes), groups)


def _registers(part: str, width: int) -> list[str]:
    found: list[str] = []
    for kind, number, wide in _REGISTER.findall(part):
        count = 1 if "P" in kind else 2 if wide else width if "[" not in part else 1
        found += [f"{kind}{int(number) + i}" for i in range(count)]
    return found


def _width(name: str) -> int:
    """Registers of a result."""
    if found := re.match(r"HGMMA\.64x(\d+)", name):
        return int(found[1]) // 2
    if name.startswith("HMMA") or ".128" in name or ".M88.4" in name:
        return 4
    return 2 if re.search(r"\.64\b|WIDE|^CS2R(?!\.32)", name) else 1


def _read_width(name: str, op: str, place: int) -> int:
    if op == "HMMA":
        return (4, 2, 4)[min(place, 2)]
    if op == "HGMMA":
        return _width(name)
    if op in ("STG", "STS"):
        return _width(name)
    return 2 if "WIDE" in name and place == 2 else 1


def warps_resident(registers: int, shared_bytes: int, warps: int) -> int:
    """Warps a multiprocessor holds of programs of `warps` warps."""
    a_warp = -(-registers // 8) * 8 * 32
    programs = min(MOST_WARPS // warps, MOST_PROGRAMS, REGISTERS // a_warp // warps, SHARED // (shared_bytes + 1024))
    return programs * warps


def clocks(code: list[Instruction], warps: int) -> float:
    """Clocks a scheduler spends on one warp's pass through `code`, where `warps` of them go round it for long."""
    laps = max(1, LONG // len(code))
    pipes = [_PIPE.get(i.opcode, "fma") for i in code]
    held = [-(-i.macs // MACS) or PIPES[pipe][1] for i, pipe in zip(code, pipes)]
    after = [(k if code[i].macs else 0) + PIPES[pipes[i]][2] for i, k in enumerate(held)]
    free: dict[str, int] = defaultdict(int)  # pipe -> when it takes the next instruction
    ready: list[dict[str, int]] = [defaultdict(int) for _ in range(warps)]  # register -> when it may be read
    copies: list[list[int]] = [[0] for _ in range(warps)]  # when each group of copies is there; the last is still open
    at, may = [0] * warps, [0] * warps  # each warp's next instruction, and when its operands are there
    clock, last = 0, 0
    while running := [w for w in range(warps) if at[w] < len(code) * laps]:
        when = {w: max(clock, may[w], free[pipes[at[w] % len(code)]]) for w in running}
        last = min(running, key=lambda w: (when[w], w != last, at[w]))
        clock, i, mine = when[last], at[last] % len(code), ready[last]
        for register in code[i].writes:
            mine[register] = clock + after[i]
        if code[i].opcode == "LDGSTS":
            copies[last][-1] = clock + after[i]
        elif code[i].opcode == "LDGDEPBAR":
            copies[last].append(0)
        free[pipes[i]] = clock + held[i]
        clock, at[last] = clock + 1, at[last] + 1
        following = code[at[last] % len(code)]
        may[last] = max([clock, *(mine[register] for register in following.reads)])
        if following.opcode == "DEPBAR":
            there = copies[last][: max(0, len(copies[last]) - 1 - following.groups)]
            may[last] = max([may[last], *there])
    return clock / laps / warps
