import { Option } from "effect"

/** What a path leads to, and the values of its `:name` segments, decoded. */
export interface Found<A> {
  readonly value: A
  readonly params: Readonly<Record<string, string>>
}

/**
 * Paths as the contract writes them (`/api/v2/volumes/:name`), looked up as they are sent: each segment as it stands, a
 * parameter's percent-encoding undone after the split, so that an encoded slash is a part of a name. One spelling leads
 * to a route and no other, for whoever judged the path before us (a proxy, our own access rules) saw that one.
 */
export const make = <A>(table: ReadonlyMap<string, A>): ((path: string) => Found<A> | null) => {
  const plain = new Map([...table].filter(([path]) => !path.includes(":")))
  const patterns = [...table].flatMap(([path, value]) =>
    path.includes(":") ? [{ segments: path.split("/"), value }] : []
  )
  return (path) => {
    const value = plain.get(path)
    if (value !== undefined) return { value, params: {} }
    const segments = path.split("/", SEGMENTS_MAX)
    for (const pattern of patterns) {
      const params = match(pattern.segments, segments)
      if (params !== null) return { value: pattern.value, params }
    }
    return null
  }
}

/** More than any path of the contract has. */
const SEGMENTS_MAX = 16

const match = (wanted: ReadonlyArray<string>, segments: ReadonlyArray<string>): Record<string, string> | null => {
  if (wanted.length !== segments.length) return null
  const params: Record<string, string> = {}
  for (const [index, want] of wanted.entries()) {
    const segment = segments[index] ?? ""
    if (!want.startsWith(":")) {
      if (want !== segment) return null
      continue
    }
    const decoded = Option.getOrElse(decode(segment), () => "")
    if (decoded === "") return null
    params[want.slice(1)] = decoded
  }
  return params
}

const decode = Option.liftThrowable(decodeURIComponent)
