import * as Build from "./Build.ts"
import * as Programs from "./Programs.ts"

export default async () => {
  await Programs.ensure()
  await Build.ensure()
}
