import { Array as Arr, Cause, HashMap, Inspectable, Layer, Logger, LogLevel } from "effect"
import { fstatSync } from "node:fs"
import type { Settings } from "../schema/Settings.ts"

/** Where lines go. Never stdout, where the command line prints its results. */
export type Sink = (line: string) => void

const stderr: Sink = (line) => {
  process.stderr.write(line)
}

// A closed pipe or a full journal must not end the daemon (R4).
const deaf = () => {
  if (process.stderr.listenerCount("error") === 0) process.stderr.on("error", () => {})
}

const levels = {
  debug: LogLevel.Debug,
  info: LogLevel.Info,
  warning: LogLevel.Warning,
  error: LogLevel.Error
} as const satisfies Record<Settings["log_level"], LogLevel.LogLevel>

/**
 * One line an event, as JSON for machines or as text for people, from the set level on. `toJournal`: what the sink gets
 * goes to systemd's journal, so that each line says how grave it is.
 */
export const layer = (
  settings: Pick<Settings, "log_level" | "log_format">,
  sink: Sink = stderr,
  toJournal: boolean = isJournal(process.env["JOURNAL_STREAM"])
): Layer.Layer<never> => {
  deaf()
  const format = settings.log_format === "json" ? json : pretty
  const lines = toJournal ? (event: Event) => graded(priorityOf(event), format(event)) : format
  return Layer.merge(
    Logger.replace(
      Logger.defaultLogger,
      Logger.make((event) => sink(`${lines(event)}\n`))
    ),
    Logger.minimumLogLevel(levels[settings.log_level])
  )
}

/**
 * `JOURNAL_STREAM` is `device:inode` of the stream that systemd connected to the journal; whoever redirected ours since
 * gave it others (systemd.exec(5)).
 */
export const isJournal = (stream: string | undefined, descriptor = 2): boolean => {
  if (stream === undefined || !/^\d+:\d+$/.test(stream)) return false
  const { dev, ino } = fstatSync(descriptor, { bigint: true })
  return stream === `${dev}:${ino}`
}

/** What ends the program, fit for where its standard error goes. */
export const fatal = (text: string): string =>
  isJournal(process.env["JOURNAL_STREAM"]) ? graded(PRIORITIES.error, text) : text

/** As systemd reads it at the head of each line (sd-daemon(3)). */
const graded = (priority: number, lines: string): string => lines.replaceAll(/^/gm, `<${priority}>`)

/** Of syslog(3). */
const PRIORITIES = { fatal: 2, error: 3, warning: 4, info: 6, debug: 7 } as const

const priorityOf = ({ logLevel }: Event): number => {
  switch (logLevel._tag) {
    case "Fatal":
      return PRIORITIES.fatal
    case "Error":
      return PRIORITIES.error
    case "Warning":
      return PRIORITIES.warning
    case "All":
    case "Info":
    case "None":
      return PRIORITIES.info
    case "Debug":
    case "Trace":
      return PRIORITIES.debug
  }
}

type Event = Logger.Logger.Options<unknown>

const json = (event: Event): string =>
  escaped(
    Inspectable.stringifyCircular({
      time: event.date.toISOString(),
      level: levelOf(event),
      message: messageOf(event),
      ...(Cause.isEmpty(event.cause) ? {} : { cause: Cause.pretty(event.cause, { renderErrorCause: true }) }),
      ...Object.fromEntries(annotationsOf(event).map(([key, value]) => [key in reserved ? `_${key}` : key, value]))
    })
  )

const reserved = { time: 0, level: 0, message: 0, cause: 0 }

const pretty = (event: Event): string => {
  const head = `${event.date.toISOString().slice(11, 23)} ${levelOf(event).toUpperCase().padEnd(7)} ${messageOf(event)}`
  const annotations = annotationsOf(event).map(([key, value]) => `${key}=${written(value)}`)
  const first = escaped([head, ...annotations].join(" "))
  if (Cause.isEmpty(event.cause)) return first
  const cause = Cause.pretty(event.cause, { renderErrorCause: true }).split("\n")
  return [first, ...cause.map((line) => `    ${escaped(line)}`)].join("\n")
}

const levelOf = (event: Event): string =>
  event.logLevel._tag === "Warning" ? "warning" : event.logLevel._tag.toLowerCase()

const messageOf = (event: Event): string => Arr.ensure(event.message).map(written).join(" ")

const annotationsOf = (event: Event): ReadonlyArray<readonly [string, unknown]> =>
  [...HashMap.toEntries(event.annotations)].sort(([a], [b]) => (a < b ? -1 : 1))

/** Texts as they are; anything else as JSON, where a `Redacted` shows itself as such. */
const written = (value: unknown): string => {
  if (typeof value === "string") return value
  return value instanceof Error ? value.message : Inspectable.stringifyCircular(value)
}

/** What a terminal obeys, or a reader of lines takes for the end of one, is written as an escape (X11). */
const escaped = (line: string): string =>
  line.replaceAll(
    /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`
  )
