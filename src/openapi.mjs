import { writeFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { format } from "./Http/Description.ts"
import { version } from "./Cli/Package.ts"

writeFileSync(fileURLToPath(new URL("../schema/openapi.json", import.meta.url)), format(version()))
