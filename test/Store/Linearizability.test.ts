import { assert, describe, it } from "@effect/vitest"
import { type Entry, type History, order } from "../support/Linearizability.ts"

type Outcome = Extract<Entry, { _tag: "Write" }>["outcome"]

const write = (
  begun: number,
  ended: number | null,
  expected: number | null,
  made: number,
  outcome: Outcome
): Entry => ({
  _tag: "Write",
  client: made,
  begun,
  ended,
  expected,
  made,
  outcome
})
const read = (begun: number, ended: number, found: number | null): Entry => ({
  _tag: "Read",
  client: 0,
  begun,
  ended,
  found
})

const good: Readonly<Record<string, History>> = {
  "nothing at all": [],
  "one after the other": [
    write(0, 1, null, 1, "done"),
    read(2, 3, 1),
    write(4, 5, 1, 2, "done"),
    write(6, 7, 1, 3, "refused"),
    read(8, 9, 2)
  ],
  "a read beside a write, before it": [write(0, 1, null, 1, "done"), write(2, 9, 1, 2, "done"), read(3, 4, 1)],
  "a read beside a write, after it": [write(0, 1, null, 1, "done"), write(2, 9, 1, 2, "done"), read(3, 4, 2)],
  "a chain that was acknowledged in the other order": [
    write(0, 9, null, 1, "done"),
    write(1, 8, 1, 2, "done"),
    write(2, 7, 2, 3, "done")
  ],
  "a write without an answer that is seen later": [
    write(0, 1, null, 1, "done"),
    write(2, null, 1, 2, "unknown"),
    read(50, 51, 1),
    read(60, 61, 2)
  ],
  "a write without an answer that never was": [
    write(0, 1, null, 1, "done"),
    write(2, null, 1, 2, "unknown"),
    write(50, 51, 1, 3, "done")
  ],
  "a loser that expected what was beside it": [
    write(0, 1, null, 1, "done"),
    write(2, 9, 1, 2, "done"),
    write(3, 10, 1, 3, "refused")
  ]
}

const bad: Readonly<Record<string, History>> = {
  "a lost update: two winners of one generation": [
    write(0, 1, null, 1, "done"),
    write(2, 9, 1, 2, "done"),
    write(3, 10, 1, 3, "done")
  ],
  "a stale read": [write(0, 1, null, 1, "done"), write(2, 3, 1, 2, "done"), read(4, 5, 1)],
  "an acknowledged write that is gone": [write(0, 1, null, 1, "done"), read(2, 3, null)],
  "a refused write that is seen": [
    write(0, 1, null, 1, "done"),
    write(2, 3, 1, 2, "done"),
    write(4, 5, 1, 3, "refused"),
    read(6, 7, 3)
  ],
  "a refusal without a reason": [write(0, 1, null, 1, "done"), write(2, 3, 1, 2, "refused")],
  "a write before it was asked for": [write(0, 1, null, 1, "done"), read(2, 3, 2), write(4, 5, 1, 2, "done")],
  "two reads in the wrong order": [
    write(0, 1, null, 1, "done"),
    write(2, 20, 1, 2, "done"),
    read(3, 4, 2),
    read(5, 6, 1)
  ],
  "an unknown write that is there and gone again": [
    write(0, 1, null, 1, "done"),
    write(2, null, 1, 2, "unknown"),
    read(10, 11, 2),
    read(12, 13, 1)
  ]
}

describe("the checker of histories", () => {
  for (const [name, history] of Object.entries(good))
    it(`finds an order for ${name}`, () => assert.isNotNull(order(history)))

  for (const [name, history] of Object.entries(bad)) it(`finds none for ${name}`, () => assert.isNull(order(history)))

  it("is not lost in a crowd: sixteen writers a generation, a thousand writes", () => {
    const history = Array.from({ length: 1_000 }, (_, at): Entry => {
      const generation = Math.trunc(at / 16)
      const begun = generation * 100 + (at % 16)
      const expected = generation === 0 ? null : generation
      return write(begun, begun + 50, expected, generation + 1, at % 16 === 7 ? "done" : "refused")
    })
    // The last group may be short of its winner.
    const whole = history.slice(0, 992)
    assert.strictEqual(order(whole)?.length, 992)
    const [lost] = whole.splice(500 - (500 % 16) + 7, 1)
    assert.isDefined(lost)
    assert.isNull(order(whole))
  })
})
