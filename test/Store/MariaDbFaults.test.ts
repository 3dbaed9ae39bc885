import * as SqlClient from "@effect/sql/SqlClient"
import { Effect, Layer } from "effect"
import * as Context from "effect/Context"
import * as Mysql from "../../src/Store/Mysql.ts"
import { mysqlErrors } from "../support/FaultySql.ts"
import { faultSuite } from "./faultSuite.ts"
import * as Site from "./MariaDbSite.ts"

// Nothing is killed here, so that nothing need be flushed.
const server = Site.shared("--innodb-flush-log-at-trx-commit=0", "--sync-binlog=0")

faultSuite("a MariaDB that fails", {
  dialect: "mysql",
  errors: mysqlErrors,
  database: Effect.gen(function* () {
    const target = yield* (yield* server).database()
    return Context.get(yield* Layer.build(Mysql.layer(target)), SqlClient.SqlClient)
  })
})
