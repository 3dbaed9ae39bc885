import { isOpen } from "./Access.ts"

/**
 * Requests at once, by what they cost: probes must be answered when all else is full, and an answer that is held back
 * takes no work. Answers that stream hold no place; whoever makes them counts them.
 */
const limits = { probe: 32, wait: 1_000, work: 256 } as const

type Kind = keyof typeof limits

const kindOf = (url: string): Kind => {
  if (isOpen(url)) return "probe"
  return isHeldBack.test(url) ? "wait" : "work"
}

/** The routes that hold an answer back; on any other, `wait` is a word that anybody may write. */
const isHeldBack = /^\/api\/(?:v1\/operations|v2\/volumes)\/[^/?]+\?(?:.*&)?wait=/u

/** Turns away above the limits, and queues nothing. */
export const make = () => {
  const taken = { probe: 0, wait: 0, work: 0 }
  return {
    /** How to leave the place that was taken, or null where none is free. Leaving twice is leaving once. */
    enter: (url: string): (() => void) | null => {
      const kind = kindOf(url)
      if (taken[kind] >= limits[kind]) return null
      taken[kind] += 1
      let inside = true
      return () => {
        if (inside) taken[kind] -= 1
        inside = false
      }
    }
  }
}
