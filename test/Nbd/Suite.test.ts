import * as Engine from "./Engine.ts"
import { suite } from "./suite.ts"

suite(Engine.nbdServer)
