// Runs jobs that do nothing: how many a second, with so many at once, while as many wait.
//
//   node rate.js DATABASE_URL CONCURRENCY WAITING SECONDS
//
// Prints {"jobs", "seconds"}.
import { Logger, makeWorkerUtils, run } from "graphile-worker";

const [connectionString, concurrency, waiting, seconds] = process.argv.slice(2);
const logger = new Logger(() => () => {});
const shared = { connectionString, logger, maxPoolSize: Number(concurrency) + 2 };

const utils = await makeWorkerUtils(shared);
await utils.migrate();
const count = () =>
  utils.withPgClient(async (client) => {
    const { rows } = await client.query("select count(*)::int as jobs from graphile_worker.jobs");
    return rows[0].jobs;
  });
const missing = Number(waiting) - (await count());
if (missing > 0) {
  await utils.withPgClient((client) =>
    client.query(
      "select count(*) from graphile_worker.add_jobs(array(select row(" +
        "'nothing', '{}', null, null, null, null, null, null)::graphile_worker.job_spec " +
        "from generate_series(1, $1::int)))",
      [missing],
    ),
  );
}
let jobs = 0;
const started = process.hrtime.bigint();
const runner = await run({
  ...shared,
  concurrency: Number(concurrency),
  noHandleSignals: true,
  taskList: { nothing: async () => void jobs++ },
});
await new Promise((done) => setTimeout(done, Number(seconds) * 1000));
const ran = jobs;
const took = Number(process.hrtime.bigint() - started) / 1e9;
await runner.stop();
await utils.release();
console.log(JSON.stringify({ jobs: ran, seconds: took }));
