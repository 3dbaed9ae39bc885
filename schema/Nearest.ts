/** Longer words are not compared: nobody mistypes one, and comparing takes time. */
const LETTERS_MAX = 64

/**
 * The candidate that was probably meant: at most a third of its letters wrong, two in a short one; else the first that
 * contains the word or is contained in it. `null` when none is near.
 */
export const nearest = (word: string, candidates: ReadonlyArray<string>): string | null => {
  const typed = word.toLowerCase()
  if (typed.length > LETTERS_MAX) return null
  let best: { readonly candidate: string; readonly distance: number } | null = null
  for (const candidate of candidates) {
    const limit = Math.max(2, Math.floor(Math.max(candidate.length, typed.length) / 3))
    if (Math.abs(candidate.length - typed.length) > limit) continue
    const distance = editDistance(typed, candidate.toLowerCase())
    const close = distance <= limit && distance < candidate.length
    if (close && (best === null || distance < best.distance)) best = { candidate, distance }
  }
  return best === null ? partly(typed, candidates) : best.candidate
}

const partly = (typed: string, candidates: ReadonlyArray<string>): string | null =>
  candidates.find((candidate) => {
    const [short, long] = candidate.length < typed.length ? [candidate, typed] : [typed, candidate]
    return short.length >= 4 && long.toLowerCase().includes(short.toLowerCase())
  }) ?? null

/** Levenshtein's distance, one row at a time. */
const editDistance = (from: string, to: string): number => {
  let row = Array.from({ length: to.length + 1 }, (_, column) => column)
  for (let i = 1; i <= from.length; i++) {
    const next = [i]
    for (let j = 1; j <= to.length; j++) {
      const replaced = (row[j - 1] ?? 0) + (from[i - 1] === to[j - 1] ? 0 : 1)
      next.push(Math.min(replaced, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1))
    }
    row = next
  }
  return row[to.length] ?? 0
}
