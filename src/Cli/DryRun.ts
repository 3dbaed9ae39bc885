import { Effect } from "effect"
import type { Invocation } from "./Arguments.ts"
import * as Act from "./Act.ts"
import { Daemon } from "./Daemon.ts"
import * as Exit from "./Exit.ts"
import { planText, show } from "./Output.ts"

/** What would be done, and why. The exit code says which kind of news it is. */
export const plan = Effect.fn("DryRun.plan")(function* (invocation: Invocation) {
  if (invocation.flags.has("standalone")) {
    // What observing needs is the daemon's code, which a plan asked from a daemon never loads.
    const { standalone } = yield* Effect.promise(() => import("./Standalone.ts"))
    return yield* standalone(invocation)
  }
  const { client } = yield* Daemon
  if (invocation.values.file === undefined) {
    const answer = yield* client.plan
    yield* show(answer, (paint) => planText(answer.text, paint))
    return Exit.ofPlan(answer.plan)
  }
  const { request, located } = yield* Act.document(invocation)
  const answer = yield* client.planFor(request).pipe(Effect.mapError((error) => Act.inFile(error, located)))
  yield* show(answer, (paint) => planText(answer.text, paint))
  return Exit.ofPlan(answer.plan)
})
