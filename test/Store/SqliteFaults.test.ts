import * as SqlClient from "@effect/sql/SqlClient"
import { Effect, Layer } from "effect"
import * as Context from "effect/Context"
import * as Sqlite from "../../src/Store/Sqlite.ts"
import { sqliteErrors } from "../support/FaultySql.ts"
import { faultSuite } from "./faultSuite.ts"

faultSuite("an SQLite database that fails", {
  dialect: "sqlite",
  errors: sqliteErrors,
  database: Effect.map(Layer.build(Sqlite.layer(Sqlite.MEMORY)), Context.get(SqlClient.SqlClient))
})
