import { Effect, Layer } from "effect"
import { Output, plain, type Form, type Screen } from "../../src/Cli/Output.ts"

export interface Recording {
  readonly results: () => string
  readonly notes: () => string
  readonly layer: Layer.Layer<Output>
}

/** An output that remembers; `screen` null is a pipe. */
export const make = (options: { readonly form?: Form; readonly screen?: () => Screen | null } = {}): Recording => {
  const results: Array<string> = []
  const notes: Array<string> = []
  return {
    results: () => results.join(""),
    notes: () => notes.join(""),
    layer: Layer.succeed(Output, {
      form: options.form ?? "table",
      result: (text) => Effect.sync(() => void results.push(text)),
      note: (text) => Effect.sync(() => void notes.push(text)),
      paint: plain,
      notePaint: plain,
      screen: Effect.sync(() => options.screen?.() ?? null)
    })
  }
}
