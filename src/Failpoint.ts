import { Context, Effect, Layer } from "effect"
import { Failpoint, type Mark, marks } from "../reconciler/Failpoint.ts"
import { Misconfigured } from "../schema/Errors.ts"

/**
 * `VOLUMED_FAILPOINT=mark:n` ends this process where the mark is passed for the n-th time, as `kill -9` would: no
 * finalizer runs. Outside a sandbox it stops the start.
 */
export const layer = (options: {
  readonly sandbox: boolean
  readonly asked: string | undefined
}): Layer.Layer<never, Misconfigured> => {
  const { asked, sandbox } = options
  if (asked === undefined || asked === "") return Layer.empty
  if (!sandbox) return misconfigured("would end the daemon, which only a sandbox's may be asked to: unset it")
  const [, mark, count] = /^([a-z.]+):([1-9]\d{0,5})$/.exec(asked) ?? []
  const known = marks.find((one) => one === mark)
  if (known === undefined)
    return misconfigured(`${JSON.stringify(asked.slice(0, 100))} names none of ${marks.join(", ")}`)
  return Layer.succeedContext(Context.make(Failpoint, { pass: endingAt(known, Number(count)) }))
}

const misconfigured = (problem: string) =>
  Layer.fail(
    new Misconfigured({
      problems: [{ key: "VOLUMED_FAILPOINT", problem, example: "VOLUMED_FAILPOINT=intent.durable:1" }]
    })
  )

const endingAt = (mark: Mark, count: number) => {
  let left = count
  return (passed: Mark): Effect.Effect<void> =>
    Effect.sync(() => {
      if (passed === mark && --left === 0) process.kill(process.pid, "SIGKILL")
    })
}
