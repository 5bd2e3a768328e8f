/**
 * What the service answers, as its OpenAPI document says. Not written by hand:
 * `python dashboards/build_schema.py` writes it anew.
 */

/** What the one who takes care has to say, if anything. */
export interface AckBody {
  note?: string | null;
}

/** Something to do. ``command`` stands only where it is known to be right here. ``loses`` says what work is lost by it, None where none is. */
export interface Action {
  text: string;
  command: string | null;
  risk: string;
  loses: string | null;
}

/** Open alerts of a run. */
export interface AlertCounts {
  pending: number;
  firing: number;
}

/** One incident with all that happened to it. */
export interface AlertDetail {
  id: number;
  alertname: string;
  severity: string;
  state: string;
  labels: Record<string, string>;
  annotations: Record<string, string>;
  active_at: string | null;
  fired_at: string | null;
  resolved_at: string | null;
  reason: string;
  fingerprint: string;
  /** What holds its messages back: a silence, or its cause */
  muted: string | null;
  acknowledged_at: string | null;
  acknowledged_by: string | null;
  owner: string | null;
  runbook_url: string | null;
  /** Null where no run is meant */
  impact: ImpactFace | null;
  /** Of open alerts */
  last_checkpoint: LastCheckpointFace | null;
  /** Why that one, or why there is none */
  checkpoint_note: string | null;
  /** Of open alerts */
  first_action: FirstActionFace | null;
  notified: NotifiedFace[];
  timeline: TimelineFace[];
  deliveries: DeliveryFace[];
}

/** One incident. */
export interface AlertFace {
  id: number;
  alertname: string;
  severity: string;
  state: string;
  labels: Record<string, string>;
  annotations: Record<string, string>;
  active_at: string | null;
  fired_at: string | null;
  resolved_at: string | null;
  reason: string;
  fingerprint: string;
  /** What holds its messages back: a silence, or its cause */
  muted: string | null;
  acknowledged_at: string | null;
  acknowledged_by: string | null;
  owner: string | null;
  runbook_url: string | null;
  /** Null where no run is meant */
  impact: ImpactFace | null;
  /** Of open alerts */
  last_checkpoint: LastCheckpointFace | null;
  /** Why that one, or why there is none */
  checkpoint_note: string | null;
  /** Of open alerts */
  first_action: FirstActionFace | null;
  notified: NotifiedFace[];
}

/** Alerts, newest first. */
export interface AlertList {
  items: AlertFace[];
  next_cursor: string | null;
}

/** Open alerts that changed, and those that are open no more. */
export interface AlertNews {
  topic: string;
  counts: StandingCounts;
  items: StandingFace[];
  gone: string[];
}

/** How often one alert came, and what became of it. */
export interface AlertStats {
  alertname: string;
  count: number;
  paged: number;
  /** Pages and tickets that people were told of */
  told: number;
  /** Of those, acknowledged or noted */
  acted_on: number;
  /** Null where nobody was told */
  acted_ratio: number | null;
  /** How often it fired again within an hour of its end */
  flapping: number;
  /** From the first bad step until it fired */
  to_detect: Spread;
  to_acknowledge: Spread;
  to_resolve: Spread;
}

/** Alerts of a time, those that people were told of most and acted on least first. */
export interface AlertStatsList {
  days: number;
  count: number;
  told: number;
  acted_on: number;
  acted_ratio: number | null;
  items: AlertStats[];
}

/** One attempt of a run. */
export interface AttemptFace {
  ordinal: number;
  attempt: string;
  status: string;
  first_step: number;
  last_step: number | null;
  superseded_after: number | null;
}

/** Which rule to try, with which numbers, on which runs. */
export interface BacktestBody {
  /** A rule of a detector */
  alert: string;
  /** Those to change; the others stay as they are */
  params?: Record<string, number | string>;
  /** Runs that were heard within so many days */
  days?: number;
  /** Of those the newest */
  runs?: number;
}

/** A trial as it stands; while it runs, of the runs that are done. */
export interface BacktestFace {
  alert: string;
  params: Record<string, number | string>;
  days: number;
  state: "running" | "done" | "cancelled" | "failed";
  why: string;
  by: string;
  started_at: string | null;
  ended_at: string | null;
  runs: number;
  runs_done: number;
  /** The one that is judged now */
  run: string;
  frames: number;
  /** Runs beyond so many frames are left out */
  most_frames: number;
  /** With the rules as they are */
  old: TallyFace;
  /** With the numbers to try */
  new: TallyFace;
  /** The first 200, changes before what stays */
  findings: TriedFace[];
  left_out: LeftOutFace[];
}

/** One pair of windows; rates are null where nothing happened in them. */
export interface BurnFace {
  severity: "page" | "ticket";
  long_s: number;
  short_s: number;
  /** Times the allowed rate over the long window */
  long: number | "NaN" | "Infinity" | "-Infinity" | null;
  short: number | "NaN" | "Infinity" | "-Infinity" | null;
  limit: number;
  word: "Critical" | "Recovering" | "Increasing" | "Acceptable";
}

/** A rank that the others wait for. */
export interface CauseFace {
  rank: number;
  /** Median over the steps of what the others lose to it */
  lost_seconds: number;
  /** The same as a share of the step time */
  lost_share: number;
}

/** A checkpoint with a checksum, finite weights, and enough clean steps behind it. */
export interface Checkpoint {
  path: string;
  step: number;
  sha256: string;
  bytes: number | null;
}

/** The rank that did what a command asked. */
export interface CommandAckBody {
  run: string;
  attempt: string;
  rank: number;
  nonce: string;
}

/** The command as issued. */
export interface CommandAnswer {
  id: number;
}

/** Ask something of a rank; what ``args`` may hold depends on the kind, see :data:`ARGS`. */
export interface CommandBody {
  rank?: number;
  kind: "checksums" | "capture" | "speak" | "pause" | "resume" | "schedule" | "halt";
  args?: Record<string, unknown>;
}

/** Something asked of a rank; doing it twice does no harm. */
export interface CommandFace {
  id: number;
  kind: string;
  args: Record<string, unknown>;
}

/** Open commands of the asking rank. */
export interface CommandsAnswer {
  commands: CommandFace[];
}

/** Waiting and transfer over a window of steps; no clocks are compared between hosts. */
export interface CommunicationFace {
  first_step: number | null;
  last_step: number | null;
  /** Steps that every rank measured */
  joined_steps: number;
  /** What the seconds are of */
  measure: string | null;
  step_seconds: number | null;
  /** The first bucket's all-reduce once everybody is there: the least over ranks */
  transfer_seconds: number | null;
  ranks: RankCommunication[];
  /** Worst first; empty where nobody stands out */
  causes: CauseFace[];
  /** Why something is unknown, or no rank is named */
  reason: string | null;
}

/** All ranks at a step. */
export interface CompareFace {
  /** The step asked for; null where there is none */
  step: number | null;
  ranks: RankPlace[];
  keys: Record<string, KeyCompared>;
}

/** Open alerts of one rule. */
export interface CountsFace {
  pending: number;
  firing: number;
}

/** How much of what could be watched was; ``gaps`` say what would arm the rest. */
export interface Coverage {
  armed: number;
  of: number;
  partly: boolean;
  gaps: Excluded[];
}

/** Whether one kind of sickness could be seen in this run. */
export interface CoverageFace {
  alert: string;
  state: "armed" | "waiting" | "blind";
  detail: string;
  /** False where there is nothing to look for in this run */
  concerns: boolean;
}

/** Who was told, and how it went. */
export interface DeliveryFace {
  receiver: string;
  state: string;
  attempts: number;
  at: string | null;
  ok: boolean | null;
  detail: string | null;
}

/** What ails a run; the stories with the worst first, the findings by onset. ``closest`` are known patterns that come near, where none fits. */
export interface Diagnosis {
  run: string;
  name: string;
  status: string;
  step: number | null;
  verdict: string;
  headline: string;
  stories: Story[];
  findings: Finding[];
  last_good_checkpoint: Checkpoint | null;
  checkpoint_note: string;
  coverage: Coverage;
  closest: Near[];
}

/** One series that moved; ``name`` is a parameter, a number of the loop, or a rank. */
export interface Difference {
  kind: "layer" | "number" | "rank";
  name: string;
  quantity: string;
  /** Of a parameter: its row in the heatmap */
  row: number | null;
  /** Median of the finite values; null where none is */
  inside: number | null;
  outside: number | null;
  /** How far apart, in scaled median absolute deviations of the outside; null where values inside are not finite and those outside are */
  spreads: number | null;
  /** Columns, or steps, inside that are not finite */
  nonfinite: number;
}

/** What sets steps ``first`` to ``last`` apart, the furthest first. */
export interface DifferencesFace {
  first: number;
  last: number;
  /** Compared with these steps, without the inside */
  outside: [number, number];
  /** Series that were compared */
  compared: number;
  items: Difference[];
}

/** The second receiver of a route. */
export interface EscalationFace {
  receiver: string;
  after_seconds: number;
}

/** Something that happened at a step. */
export interface EventFace {
  step: number;
  time_ns: number;
  rank: number;
  attempt: number;
  kind: string;
  text: string;
  data: Record<string, unknown>;
}

/** Events in time order. */
export interface EventList {
  items: EventFace[];
}

/** One thing that was seen; ``path`` shows it on the dashboard. */
export interface Evidence {
  text: string;
  path: string;
  series?: string | null;
  layer?: string | null;
  rank?: string | null;
  first_step?: number | null;
  last_step?: number | null;
}

/** Another cause that was looked for, and what speaks against it. */
export interface Excluded {
  what: string;
  by: string;
}

/** One sickness, or the change that began one. ``state`` is ``healed`` where it went by itself, and ``ended`` where the run did first. ``step`` and ``attempt`` are its onset. ``explained_by`` and ``explains`` are ids of other findings of the same run. The first of ``actions`` is the first safe one. */
export interface Finding {
  id: string;
  kind: "alert" | "change";
  name: string;
  severity: "page" | "ticket" | "note" | null;
  state: "firing" | "pending" | "healed" | "ended" | "change";
  attempt: number;
  step: number | null;
  layer: string | null;
  rank: string | null;
  node: string | null;
  symptom: string;
  cause: string;
  confidence: "high" | "medium" | "low";
  why: string;
  explained_by: string | null;
  explains: string[];
  evidence: Evidence[];
  actions: Action[];
  ruled_out: Excluded[];
  not_ruled_out: Excluded[];
  runbook: string | null;
  alerts: number[];
}

/** The first safe thing to do; a command stands only where it is known to be right. */
export interface FirstActionFace {
  text: string;
  command: string | null;
  risk: string | null;
}

/** The fleet in a handful of figures. */
export interface FleetFace {
  counts: Record<string, number>;
  /** Of runs that are not well: since their last checkpoint, or their start */
  gpu_hours_at_risk: number;
  slos: LeftFace[];
  incidents: IncidentCounts;
  noise: NoiseFace;
  silences_active: number;
  telemetry: TelemetryCounts;
}

/** The process answers. */
export interface Healthy {
  status?: string;
}

/** A sign of life between frames. */
export interface HeartbeatBody {
  run: string;
  attempt: string;
  rank: number;
  nonce: string;
  step?: number | null;
  phase?: string | null;
  /** UTC nanoseconds */
  sent_ns: number;
}

/** How large the finite non-zero gradient values of one row were at ``step``. */
export interface HistogramFace {
  row: number;
  name: string;
  step: number;
  time_ns: number;
  /** 15 inner edges of the bins, rising */
  edges: number[];
  /** 16 bins: below the first edge, ..., from the last up */
  counts: number[];
}

/** A budget over its last period. */
export interface HistoryFace {
  items: MomentFace[];
}

/** What an incident cost, from its first bad step until now or its end. */
export interface ImpactFace {
  /** Processes of the run; each drives a GPU where there are any */
  gpus: number;
  gpu_hours: number;
  /** What the hours are hours of */
  devices: "GPU" | "process";
  /** The time of the first bad step */
  since: string | null;
}

/** Pages and tickets: those that stand, and those that fired in the last two weeks. */
export interface IncidentCounts {
  open: number;
  week: number;
  prev_week: number;
}

/** What is durable now. */
export interface IngestAnswer {
  commands: CommandFace[];
  stored: number;
  duplicate: number;
  /** Left out, or for how long to gather frames that are not urgent */
  batch_seconds?: number | null;
}

/** One key over the ranks. */
export interface KeyCompared {
  /** Of the finite values */
  median: number | null;
  /** The median absolute deviation from it */
  mad: number | null;
  /** The ranks that told a value */
  told_by: number[];
  values: RankValue[];
}

/** The last good checkpoint: its checksum known, its weights finite, clean steps behind it. */
export interface LastCheckpointFace {
  step: number;
  path: string;
  age_seconds: number | null;
  /** Somebody looked at the file again, and it was as saved */
  verified: boolean;
}

/** Columns over runs, the newest run first; null where a run never told a value. */
export interface LatestFace {
  run: string[];
  name: string[];
  status: string[];
  step: (number | null)[];
  last_seen_ns: number[];
  keys: Record<string, (number | "NaN" | "Infinity" | "-Infinity" | null)[]>;
  /** False where only the newest 10,000 runs are told */
  complete: boolean;
}

/** One watched parameter. */
export interface LayerFace {
  i: number;
  name: string;
  layer: string;
  block: string;
  kind: string;
  params: number;
  dtype: string;
}

/** The layout is kept. */
export interface LayoutAnswer {
  hash: string;
}

/** What is left of one budget; null with too little data. */
export interface LeftFace {
  id: string;
  budget_left: number | null;
}

/** A run that could not be judged. */
export interface LeftOutFace {
  run: string;
  why: string;
}

/** One message to one receiver. */
export interface LetterFace {
  id: number;
  receiver: string;
  group_key: string;
  severity: string;
  state: string;
  status: string;
  summary: string;
  attempts: number;
  created_at: string | null;
  next_try_at: string | null;
  last_try_at: string | null;
  detail: string | null;
}

/** Messages, the newest first. */
export interface LetterList {
  items: LetterFace[];
  next_cursor?: string | null;
}

/** A token to exchange for a session. */
export interface LoginBody {
  token: string;
}

/** What is not to be heard while work goes on, once or every week. */
export interface MaintenanceBody {
  /** As in Prometheus: alertname="RunStalled", run_name=~"gpt.*", team!="" */
  matchers: string[];
  comment: string;
  /** Default: now */
  starts_at?: string | null;
  /** Of a weekly one: none after this */
  ends_at?: string | null;
  /** In place of ends_at, where it comes once */
  duration_seconds?: number | null;
  weekly?: WeeklyBody | null;
}

/** One planned work. */
export interface MaintenanceFace {
  id: number;
  state: "scheduled" | "active" | "ended";
  matchers: string[];
  starts_at: string | null;
  ends_at: string | null;
  weekly: WeeklyBody | null;
  /** The window that is open now */
  open: WindowFace | null;
  /** The next one to open */
  next: WindowFace | null;
  author: string;
  comment: string;
}

/** Planned work, the newest first. */
export interface MaintenanceList {
  items: MaintenanceFace[];
}

/** One matcher. */
export interface MatcherBody {
  name: string;
  value: string;
  isRegex?: boolean;
  isEqual?: boolean;
}

/** The budget at one moment; ``budget_left`` null where nothing had happened before it. */
export interface MomentFace {
  t: string | null;
  budget_left: number | null;
  good: number;
  total: number;
}

/** A known pattern that comes close to what was seen and does not fit it. ``signs`` is what of it was seen, ``against`` what speaks against it. */
export interface Near {
  name: string;
  cause: string;
  signs: Evidence[];
  against: string[];
}

/** What people were told of in 30 days, and whether anybody did anything. */
export interface NoiseFace {
  acted: number;
  ignored: number;
}

/** What somebody has to say of an alert. */
export interface NoteBody {
  text: string;
}

/** One message about the alert: to whom, when, and how it went. */
export interface NotifiedFace {
  receiver: string;
  /** Of the last try; null before the first */
  at: string | null;
  ok: boolean | null;
  /** What made it be sent: fired, changed, repeated, resolved, storm, or escalated and why */
  why: string;
  /** waiting, standing, sent or dead */
  state: string;
  attempts: number;
  detail: string | null;
}

/** A person's word. */
export interface OutcomeBody {
  outcome: "good" | "bad";
  reason?: string;
}

/** How a run counts for the objective on training success. */
export interface OutcomeFace {
  outcome: "good" | "bad" | "not counted" | "open";
  reason: string;
  ended_at: string | null;
  marked_by: string | null;
}

/** The budget of one part, such as one environment. */
export interface PartFace {
  labels: Record<string, string>;
  /** Share of good events in the period */
  current: number | null;
  /** Below 0 where more was spent than there was */
  budget_left: number | null;
  good: number;
  total: number;
  burn: BurnFace[];
  sentence: string;
  enough_data: boolean;
}

/** What a budget is for. */
export interface PeriodFace {
  kind: "rolling" | "calendar";
  days: number;
}

/** A silence as Alertmanager's clients post it; with an ``id`` it takes that one's place. */
export interface PostedSilence {
  id?: string | null;
  matchers: MatcherBody[];
  startsAt: string;
  endsAt: string;
  createdBy: string;
  comment: string;
}

/** What an hour of one GPU of a type costs. */
export interface PriceBody {
  /** As the driver names it; * */
  gpu: string;
  per_hour: number;
  currency: string;
}

/** Prices by type; ``*`` stands for all that are not named. */
export interface PriceTable {
  items: PriceBody[];
}

/** What is to page from now on. */
export interface PromoteBody {
  /** One rule; null for the project */
  alert?: string | null;
}

/** One rank, as the median over the steps that all ranks measured. */
export interface RankCommunication {
  rank: number;
  /** Its time in the collective, waiting included */
  seconds: number | null;
  /** Of it, waiting for the last rank */
  wait_seconds: number | null;
  /** Waiting as a share of the step time */
  wait_share: number | null;
  /** Steps in the window that it measured */
  measured_steps: number;
}

/** One rank of the newest attempt, and where it runs. */
export interface RankFace {
  rank: number;
  group: number;
  shard: number;
  shards: number;
  host: string;
  place: Record<string, unknown>;
  last_step: number | null;
  last_seen_at: string | null;
  /** The last sign that its process lived */
  heartbeat_at: string | null;
  ended: boolean;
}

/** One rank, and its steps by column. */
export interface RankLine {
  rank: number;
  state: "reporting" | "behind" | "silent" | "ended" | "missing";
  host: string | null;
  last_step: number | null;
  /** Steps behind the rank that is furthest */
  lag_steps: number | null;
  last_seen_ns: number | null;
  /** Of the whole run, at which its own loss or gradients were not finite, before any averaging */
  first_bad_step: number | null;
  /** From which its replica differs from the others */
  drift_step: number | null;
  /** Steps told, by column */
  told: number[];
  /** Of them those that were not finite, by column */
  bad: number[];
  /** Mean of the measure, by column */
  seconds: (number | null)[];
}

/** One rank of the newest attempt, and where it runs. */
export interface RankPlace {
  rank: number;
  group: number;
  shard: number;
  shards: number;
  host: string;
  /** Node, gpu, pod and the like, as the rank told them */
  place: Record<string, unknown>;
}

/** All ranks over the same buckets of steps; of too many the oddest: those that are not finite or drifted, then the slow, the silent or behind, and the missing. */
export interface RankStrips {
  world_size: number;
  counts: Record<string, number>;
  /** What the seconds are of */
  measure: string | null;
  step: number[];
  step_last: number[];
  /** The median of all ranks' seconds, by column */
  usual: (number | null)[];
  /** Of all ranks the one that took longest */
  slowest: (number | null)[];
  /** And its seconds */
  longest: (number | null)[];
  /** The ranks sick at the earliest step of the run */
  first_bad: number[];
  first_bad_step: number | null;
  drifted: number[];
  ranks: RankLine[];
  left_out: number;
  /** Of them those that something is odd about */
  left_out_odd: number;
}

/** What one rank told. */
export interface RankValue {
  rank: number;
  /** Where it told it: the step asked for, or one before */
  step: number | null;
  /** Null: it told none; norms come from speakers only */
  value: number | "NaN" | "Infinity" | "-Infinity" | null;
  outlier: boolean;
}

/** Somebody who is told; the URL may be a credential and is not shown. */
export interface ReceiverFace {
  name: string;
  type: string;
  severities: string[];
  /** Whether messages carry links that acknowledge and silence */
  links: boolean;
}

/** Every receiver of the file. */
export interface ReceiverList {
  items: ReceiverFace[];
  next_cursor?: string | null;
}

/** How a test message went. */
export interface ReceiverTest {
  ok: boolean;
  latency_ms: number;
  detail: string;
}

/** How the files were read last; with mistakes, what was read before stands. */
export interface ReloadFace {
  at: string | null;
  ok: boolean;
  mistakes: string[];
}

/** Days for which a project keeps what; null is for ever. */
export interface RetentionFace {
  /** Every value of every layer */
  raw_days: number | null;
  /** Roll-ups over 16 steps; wider ones stay with the run */
  rollup_days: number | null;
  /** Runs with all that they have */
  run_days: number | null;
}

/** A message that is sent once more. */
export interface RetryFace {
  id: number;
  state: string;
}

/** One route; a time that is null follows from the severity of the alerts. */
export interface RouteFace {
  receiver: string;
  matchers: string[];
  group_by: string[] | null;
  group_wait_seconds: number | null;
  group_interval_seconds: number | null;
  repeat_interval_seconds: number;
  cool_down_seconds: number;
  goes_on: boolean;
  escalate: EscalationFace | null;
}

/** Routes in their order. */
export interface RouteList {
  items: RouteFace[];
}

/** One rule of either kind. */
export interface RuleFace {
  name: string;
  kind: "detector" | "alert" | "record";
  /** Of Prometheus's rules: the group that it is in */
  group: string | null;
  file: string | null;
  /** Its PromQL */
  query: string | null;
  /** Which built-in detector it sets up */
  detector: string | null;
  params: Record<string, number | string | boolean>;
  /** Where the numbers of a detector's rule come from */
  source: string | null;
  labels: Record<string, string>;
  annotations: Record<string, string>;
  /** None: at every step of a run */
  interval_seconds: number | null;
  for_seconds: number;
  keep_firing_for_seconds: number;
  /** The page of docs/runbooks that it names */
  runbook: string | null;
  state: "inactive" | "pending" | "firing";
  health: "ok" | "err" | "unknown";
  error: string | null;
  last_evaluation: string | null;
  evaluation_seconds: number | null;
  /** Its pages are tickets, in a shadow period */
  would_have_paged: boolean;
  alerts: CountsFace;
}

/** All rules, detectors first. */
export interface RuleList {
  items: RuleFace[];
  last_reload: ReloadFace;
}

/** What becomes of the pages of one rule. */
export interface RuleShadowFace {
  alert: string;
  /** False: they are delivered as tickets, would have paged */
  pages: boolean;
  /** Alerts that were tickets and would have paged */
  would_have_paged: number;
  promoted_at: string | null;
  promoted_by: string | null;
}

/** One run with all that its page shows. */
export interface RunDetail {
  run: string;
  name: string;
  project: string;
  owner: string | null;
  training_job: string | null;
  environment: string;
  status: string;
  health: "ok" | "warn" | "crit" | "silent";
  reason: string;
  /** Health in words: healthy, healthy (partly watched) where fewer than 80 % of the detectors that could watch it are armed, at risk, critical or silent */
  verdict: string;
  /** The newest attempt's number */
  attempt: number;
  step: number | null;
  loss: number | "NaN" | "Infinity" | "-Infinity" | null;
  worst_layer: string | null;
  alerts: AlertCounts;
  world_size: number;
  started_at: string | null;
  last_seen_at: string | null;
  ended_at: string | null;
  /** Recent global gradient norms */
  spark: (number | null)[];
  layers: LayerFace[];
  backward: number[];
  attempts: AttemptFace[];
  ranks: RankFace[];
  steps: [number, number] | null;
  coverage: CoverageFace[];
  unjudged: number;
  config: Record<string, unknown>;
}

/** One run in a list. */
export interface RunFace {
  run: string;
  name: string;
  project: string;
  owner: string | null;
  training_job: string | null;
  environment: string;
  status: string;
  health: "ok" | "warn" | "crit" | "silent";
  reason: string;
  /** Health in words: healthy, healthy (partly watched) where fewer than 80 % of the detectors that could watch it are armed, at risk, critical or silent */
  verdict: string;
  /** The newest attempt's number */
  attempt: number;
  step: number | null;
  loss: number | "NaN" | "Infinity" | "-Infinity" | null;
  worst_layer: string | null;
  alerts: AlertCounts;
  world_size: number;
  started_at: string | null;
  last_seen_at: string | null;
  ended_at: string | null;
  /** Recent global gradient norms */
  spark: (number | null)[];
}

/** One run in a line. */
export interface RunLine {
  run: string;
  name: string;
  project: string;
  owner: string | null;
  training_job: string | null;
  environment: string;
  status: string;
  health: "ok" | "warn" | "crit" | "silent";
  reason: string;
  /** Health in words: healthy, healthy (partly watched) where fewer than 80 % of the detectors that could watch it are armed, at risk, critical or silent */
  verdict: string;
  /** The newest attempt's number */
  attempt: number;
  step: number | null;
  loss: number | "NaN" | "Infinity" | "-Infinity" | null;
  worst_layer: string | null;
  alerts: AlertCounts;
  world_size: number;
  started_at: string | null;
  last_seen_at: string | null;
  ended_at: string | null;
}

/** Runs, newest first. */
export interface RunList {
  items: RunFace[];
  next_cursor: string | null;
}

/** Runs that changed; lines of topic fleet have a spark. */
export interface RunNews {
  topic: string;
  items: (RunFace | RunLine)[];
  gone: string[];
}

/** What to do about an alert. */
export interface RunbookFace {
  alertname: string;
  title: string;
  /** What the alert is, in a sentence or two */
  summary: string;
  sections: Section[];
  markdown: string;
}

/** What somebody wrote. */
export interface SaidFace {
  at: string | null;
  by: string;
  text: string;
}

/** A part of a runbook; its steps in their order, as Markdown. */
export interface Section {
  title: string;
  text: string;
  steps: string[];
}

/** One series: per bucket of steps the finite extremes and last, and the non-finite count. */
export interface SeriesColumns {
  min: (number | null)[];
  max: (number | null)[];
  last: (number | null)[];
  nonfinite: number[];
}

/** Series over the same buckets of steps. */
export interface SeriesFace {
  step: number[];
  time_ns: number[];
  keys: Record<string, SeriesColumns>;
  /** Every series within these steps that is no layer's, asked for or not */
  reported: string[];
}

/** Who asks, as the dashboard needs to know it. */
export interface SessionFace {
  authenticated: boolean;
  project: string | null;
  scope: "ingest" | "read" | "admin" | null;
  login_required: boolean;
  projects: string[];
  version: string;
}

/** A project's shadow period, and its rules one by one. */
export interface ShadowFace {
  state: "shadow" | "live";
  why: string;
  /** Since the project's first write */
  days: number;
  wanted_days: number;
  finished_runs: number;
  would_have_paged: number;
  rules: RuleShadowFace[];
}

/** What is not to be heard, and for how long. */
export interface SilenceBody {
  /** As in Prometheus: alertname="RunStalled", run_name=~"gpt.*", team!="" */
  matchers: string[];
  /** Default: now */
  starts_at?: string | null;
  ends_at?: string | null;
  /** In place of ends_at */
  duration_seconds?: number | null;
  comment: string;
}

/** Until when a silence is to last. */
export interface SilenceChange {
  ends_at?: string | null;
  /** In place of ends_at: so much longer than now is said */
  extend_seconds?: number | null;
}

/** One silence. */
export interface SilenceFace {
  id: number;
  state: "pending" | "active" | "expired";
  matchers: string[];
  starts_at: string | null;
  ends_at: string | null;
  author: string;
  comment: string;
}

/** Silences, the latest end first. */
export interface SilenceList {
  items: SilenceFace[];
}

/** The open alerts that a silence would hold back, and how many it would have of late. */
export interface SilencePreview {
  items: AlertFace[];
  next_cursor: string | null;
  /** Alerts that fired in the past 7 days */
  past_7d: number;
}

/** An incident of the same name, and how it ended. */
export interface SimilarFace {
  id: number;
  run: string | null;
  run_name: string | null;
  severity: string;
  state: string;
  layer: string | null;
  cause: string | null;
  summary: string | null;
  fired_at: string | null;
  resolved_at: string | null;
  reason: string;
  seconds_to_resolve: number | null;
  /** What is the same: layer, cause, run */
  alike: string[];
  acknowledged_by: string | null;
  notes: SaidFace[];
}

/** Incidents of the past 90 days, those most alike first. */
export interface SimilarList {
  items: SimilarFace[];
}

/** One objective with where it comes from. */
export interface SloDetail {
  id: string;
  name: string;
  description: string;
  service: string;
  /** What is counted, in a word */
  sli: string;
  target: number;
  window: PeriodFace;
  /** Of a budget by count: '1 of 50' */
  at_most: string | null;
  current: number | null;
  budget_left: number | null;
  burn: BurnFace[];
  sentence: string;
  enough_data: boolean;
  /** Open alerts that say so */
  alerts: number[];
  parts: PartFace[];
  /** Why it cannot be answered */
  error: string | null;
  file: string;
  good_query: string;
  bad_query: string;
  total_query: string;
  min_events: number;
  on: boolean;
}

/** One objective; its figures are those of the part with the least left. */
export interface SloFace {
  id: string;
  name: string;
  description: string;
  service: string;
  /** What is counted, in a word */
  sli: string;
  target: number;
  window: PeriodFace;
  /** Of a budget by count: '1 of 50' */
  at_most: string | null;
  current: number | null;
  budget_left: number | null;
  burn: BurnFace[];
  sentence: string;
  enough_data: boolean;
  /** Open alerts that say so */
  alerts: number[];
  parts: PartFace[];
  /** Why it cannot be answered */
  error: string | null;
}

/** Every objective that is on. */
export interface SloList {
  items: SloFace[];
}

/** A run that spent some of the budget. */
export interface SpenderFace {
  run: string;
  run_name: string | null;
  owner: string | null;
  bad: number;
  /** Of all that was spent */
  share: number;
}

/** The runs that spent most, the first first. */
export interface SpenderList {
  items: SpenderFace[];
}

/** Of how many incidents a time is known, its median and the 90th percentile, in seconds. */
export interface Spread {
  of: number;
  median: number | null;
  p90: number | null;
}

/** Open alerts, the newest thousand; those that are quiet are counted as that alone. */
export interface StandingCounts {
  firing: number;
  pending: number;
  quiet: number;
}

/** An open alert in short. */
export interface StandingFace {
  id: number;
  run: string | null;
  alertname: string;
  severity: string;
  state: "pending" | "firing";
  /** Silenced, held back by its cause, or acknowledged */
  quiet: boolean;
}

/** The stream as the service knows it. */
export interface StartAnswer {
  commands: CommandFace[];
  run: string;
  attempt: string;
  /** The attempt's number on this server, from 1 */
  ordinal: number;
  /** The run's page */
  url: string;
}

/** One process announces itself as one rank of one attempt of one run. */
export interface StartBody {
  run: string;
  attempt: string;
  rank: number;
  nonce: string;
  host: string;
  pid: number;
  world_size?: number;
  group?: number;
  shard?: number;
  shards?: number;
  first_step?: number;
  parent?: string | null;
  started_ns?: number | null;
  takeover?: boolean;
  name?: string | null;
  training_job?: string | null;
  model?: string | null;
  dataset?: string | null;
  cluster?: string | null;
  queue?: string | null;
  owner?: string | null;
  team?: string | null;
  environment?: string | null;
  git_commit?: string | null;
  config?: Record<string, unknown>;
  page?: boolean;
  cost_per_hour?: number | null;
  target_loss?: number | null;
  place?: Record<string, unknown>;
}

/** Findings of one origin in the order of their onset; the first is the root. */
export interface Story {
  root: string;
  findings: string[];
  text: string;
}

/** How often a rule speaks, by severity, and in how many runs. */
export interface TallyFace {
  pages: number;
  tickets: number;
  notes: number;
  runs: number;
}

/** Of the runs that are under way, how many were heard of within a minute. */
export interface TelemetryCounts {
  runs_reporting: number;
  runs_known: number;
}

/** One line of an alert's timeline. */
export interface TimelineFace {
  at: string | null;
  kind: "pending" | "firing" | "resolved" | "enriched" | "muted" | "unmuted" | "acknowledged" | "note" | "notified";
  from: string | null;
  to: string | null;
  reason: string;
  /** A person, or the receiver that was told */
  who: string | null;
  /** Of messages: whether it was taken */
  ok: boolean | null;
  text: string | null;
  annotations: Record<string, string>;
}

/** A token to make. */
export interface TokenBody {
  name: string;
  scope: "ingest" | "read" | "admin";
  expires_in_days?: number | null;
}

/** A new token; the secret is shown here and never again. */
export interface TokenCreated {
  id: number;
  name: string;
  prefix: string;
  scope: "ingest" | "read" | "admin";
  created_at: string | null;
  expires_at: string | null;
  last_used_at: string | null;
  revoked_at: string | null;
  secret: string;
}

/** A token as listed, without its secret. */
export interface TokenFace {
  id: number;
  name: string;
  prefix: string;
  scope: "ingest" | "read" | "admin";
  created_at: string | null;
  expires_at: string | null;
  last_used_at: string | null;
  revoked_at: string | null;
}

/** Every token of the project, newest first. */
export interface TokenList {
  items: TokenFace[];
  next_cursor?: string | null;
}

/** One thing that the rule finds; ``was_step`` where only the step differs. */
export interface TriedFace {
  run: string;
  name: string;
  change: "same" | "new" | "gone" | "moved";
  severity: string;
  attempt: number | null;
  step: number | null;
  was_step: number | null;
  summary: string;
}

/** The database after a few seconds of work; ask again while ``free_bytes`` is not 0. */
export interface VacuumAnswer {
  size_bytes: number;
  free_bytes: number;
}

/** When it comes back: a time of day on days of the week, by the clocks of a time zone. */
export interface WeeklyBody {
  days: ("mon" | "tue" | "wed" | "thu" | "fri" | "sat" | "sun")[];
  /** Such as 02:00 */
  at: string;
  duration_seconds: number;
  time_zone?: string;
}

/** One window, in UTC. */
export interface WindowFace {
  starts_at: string | null;
  ends_at: string | null;
}
