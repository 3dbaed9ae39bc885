import { Data, Effect } from "effect"

/** What the kernel answered to a file operation: the errno's name, such as `ENOENT`, where it gave one. */
export class FileFailed extends Data.TaggedError("FileFailed")<{
  readonly code: string | null
  readonly cause: unknown
}> {}

export const attempt = <A>(work: () => Promise<A>): Effect.Effect<A, FileFailed> =>
  Effect.tryPromise({
    try: work,
    catch: (cause) =>
      new FileFailed({ code: cause instanceof Error && "code" in cause ? String(cause.code) : null, cause })
  })

export const isMissing = (error: FileFailed): boolean => error.code === "ENOENT"

/** Text from outside, made fit for a message: at most 120 characters of printable ASCII. */
export const printable = (text: string): string => text.slice(0, 120).replace(/[^\x20-\x7e]/g, "?")
