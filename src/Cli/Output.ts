import { Context, Effect, Layer } from "effect"

export type Form = "table" | "json" | "yaml"

/** Where a command writes: results on standard output, everything else on standard error. */
export class Output extends Context.Tag("volumed/src/Cli/Output")<
  Output,
  {
    readonly form: Form
    readonly result: (text: string) => Effect.Effect<void>
    readonly note: (text: string) => Effect.Effect<void>
    /** Colours for results and for notes: a terminal each, and no NO_COLOR. */
    readonly paint: Paint
    readonly notePaint: Paint
    /** The terminal that notes go to, at its present size; null when they go to a pipe or a file. */
    readonly screen: Effect.Effect<Screen | null>
  }
>() {}

export interface Screen {
  readonly columns: number
  readonly rows: number
}

export interface Paint {
  readonly good: (text: string) => string
  readonly warn: (text: string) => string
  readonly bad: (text: string) => string
  readonly faint: (text: string) => string
  readonly strong: (text: string) => string
}

const painted = (on: boolean): Paint => {
  const code = (open: number, close: number) => (text: string) => (on ? `\u001b[${open}m${text}\u001b[${close}m` : text)
  return { good: code(32, 39), warn: code(33, 39), bad: code(31, 39), faint: code(2, 22), strong: code(1, 22) }
}

export const plain: Paint = painted(false)

export const layer = (
  form: Form,
  streams: { readonly stdout: NodeJS.WriteStream; readonly stderr: NodeJS.WriteStream },
  environment: Readonly<Record<string, string | undefined>>
): Layer.Layer<Output> => {
  const wanted = !environment["NO_COLOR"] && environment["TERM"] !== "dumb"
  const { stdout, stderr } = streams
  return Layer.succeed(Output, {
    form,
    result: (text) => Effect.sync(() => void stdout.write(text)),
    note: (text) => Effect.sync(() => void stderr.write(text)),
    paint: painted(wanted && stdout.isTTY === true),
    notePaint: painted(wanted && stderr.isTTY === true),
    screen: Effect.sync(() =>
      stderr.isTTY === true && environment["TERM"] !== "dumb"
        ? { columns: stderr.columns || 80, rows: stderr.rows || 24 }
        : null
    )
  })
}

/**
 * One result in the form that was asked for: `value` as it came over HTTP for programs, `text` for people.
 */
export const show = Effect.fn("Output.show")(function* (value: unknown, text: (paint: Paint) => string) {
  const output = yield* Output
  switch (output.form) {
    case "json":
      return yield* output.result(`${JSON.stringify(value, null, 2)}\n`)
    case "yaml": {
      const { render } = yield* Effect.promise(() => import("./Yaml.ts"))
      return yield* output.result(render(value))
    }
    case "table":
      return yield* output.result(text(output.paint))
  }
})

/** One of many results that come one after the other: a line of JSON or a document of YAML each. */
export const showEach = Effect.fn("Output.showEach")(function* (value: unknown, text: (paint: Paint) => string) {
  const output = yield* Output
  switch (output.form) {
    case "json":
      return yield* output.result(`${JSON.stringify(value)}\n`)
    case "yaml": {
      const { render } = yield* Effect.promise(() => import("./Yaml.ts"))
      return yield* output.result(`---\n${render(value)}`)
    }
    case "table":
      return yield* output.result(text(output.paint))
  }
})

/** Names and messages come from elsewhere: what could move a cursor or forge a line is shown as its code instead. */
export const clean = (text: string): string =>
  text.replace(
    /[\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/gu,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`
  )

/** Columns as wide as their widest cell; the last one is not padded. Cells are cleaned here, so paint afterwards. */
export const table = (
  headers: ReadonlyArray<string>,
  rows: ReadonlyArray<ReadonlyArray<string>>,
  paint: (cell: string, column: number, row: number) => string = (cell) => cell
): string => {
  const cells = rows.map((row) => row.map(clean))
  const widths = headers.map((header, column) =>
    cells.reduce((width, row) => Math.max(width, row[column]?.length ?? 0), header.length)
  )
  const line = (row: ReadonlyArray<string>, decorate: (cell: string, column: number) => string) =>
    row
      .map((cell, column) => decorate(cell, column) + " ".repeat(gap(cell, column, row.length, widths)))
      .join("")
      .trimEnd()
  return [
    line(headers, (cell) => cell),
    ...cells.map((row, index) => line(row, (cell, column) => paint(cell, column, index)))
  ]
    .map((text) => `${text}\n`)
    .join("")
}

const gap = (cell: string, column: number, columns: number, widths: ReadonlyArray<number>): number =>
  column === columns - 1 ? 0 : (widths[column] ?? 0) - cell.length + 2

/** Bytes as a person says them: whole GiB where they are, else the bytes. */
export const size = (bytes: number): string => {
  const gib = bytes / 1024 ** 3
  return Number.isInteger(gib) ? `${gib}GiB` : `${gib.toFixed(2)}GiB`
}

/** A plan's text as the server wrote it, coloured by the sign each line begins with. */
export const planText = (text: string, paint: Paint): string => {
  const shades: ReadonlyArray<readonly [RegExp, (line: string) => string]> = [
    [/^ {2}\+ /u, paint.good],
    [/^ {2}~ /u, paint.warn],
    [/^ {2}- /u, paint.bad],
    [/^(?: {2})?! /u, paint.bad],
    [/^ {6}/u, paint.faint]
  ]
  return text
    .trimEnd()
    .split("\n")
    .map((line) => (shades.find(([sign]) => sign.test(line))?.[1] ?? ((same: string) => same))(clean(line)))
    .map((line) => `${line}\n`)
    .join("")
}
