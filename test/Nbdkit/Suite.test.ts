import * as Engine from "../Nbd/Engine.ts"
import { suite } from "../Nbd/suite.ts"

suite(Engine.nbdkit)
