use super::*;

const EVERYTHING: &str = r#"
plan 1
world nodes=50 zones=3 seeds=3 preset=lan arcs=2^14 balanced=yes limits=shipped mesh=24
link latency=uniform(0.2ms,1ms) loss=0.1% dup=1% reorder=1ms corrupt=0.01% between zone:a zone:b
link latency=exp(20ms) from n7 to n9
link latency=bimodal(1ms,50ms,1%) between n1 n2
load rate=20 keys=zipf(1.1,10000) deadline=800ms idempotent=50% handler=exp(3ms) body=128
at 30s  cut half                   for 90s   # a comment
at 31s  cut isolate n3             for 90s
at 32s  cut zone a                 for 90s
at 33s  cut groups(n1 n2 | n3 n4 n5) for 90s
at 45s  oneway n7 -> zone:b        for 20s
at 60s  bridge zone:a n20 zone:c   for 40s
at 70s  loss 30% of n3             for 60s
at 90s  crash owner("k42") ; restart after=10s memory=stale
at 91s  crash random(3)
at 120s pause n5                   for 12s
at 121s block nodes(n5 n6)         for 12s
at 155s cut ring                   for 20s
at 156s bursts 90% share=10% length=500ms for 20s
at 157s hole 1000 of n3 for 20s ; at 158s hole 600 for 1s
at 160s slow n3 x50                for 30s
at 180s clock n9 drift=200ppm
at 190s quit n6 ; at 191s drain n8
at 200s leave n11 ; at 210s join 5 over 1s ; at 240s overload x3 for 10s
at 245s replace n12 ; at 246s foreign n13 ; at 247s twin n14 memory=stale ; at 248s upgrade zone:b ; at 249s roll random(2)
at 250s weigh n7 4 ; at 250s strangers 40 of random(2) for 20s ; at 260s measure for 20s
quiet at 300s core=70%
expect converged<=10s served=all
"#;

#[test]
fn what_is_printed_reads_back_the_same() {
    let plan = Plan::parse(EVERYTHING).unwrap();
    assert_eq!(plan.steps.len(), 30);
    assert_eq!(Plan::parse(&plan.to_string()), Ok(plan));
}

#[test]
fn a_restart_belongs_to_the_crash_before_it() {
    let plan = Plan::parse("plan 1\nworld nodes=4\nat 9s crash n4 ; restart after=10s memory=lost").unwrap();
    let crash = Action::Crash(Select::Side(Side::Node(4)), Some((Duration::from_secs(10), Memory::Lost)));
    assert_eq!(plan.steps[0].action, crash);
}

#[test]
fn mistakes_are_told_with_their_line() {
    for (text, line, part) in [
        ("world nodes=3", 1, "plan 1"),
        ("plan 1\nwrold nodes=3", 2, "unknown statement"),
        ("plan 1\n\nworld nodes=0", 3, "1 to 65,536"),
        ("plan 1\nat 5s weigh n1 1025", 2, "above 1024"),
        ("plan 1\nat 5s cut half", 2, "needs a duration"),
        ("plan 1\nat 5s crash n1 for 5s", 2, "no duration"),
        ("plan 1\nat 5 crash n1", 2, "no unit"),
        ("plan 1\nlink loss=101%", 2, "more than 100"),
        ("plan 1\nat 5s cut groups(n1 | n2 for 5s", 2, "not closed"),
        ("plan 1\nrestart after=5s", 2, "follows a crash"),
        ("plan 1\nload rate=5 keys=zipf(1.1234,9)", 2, "three decimals"),
        ("plan 1\nload rate=5 keys=zipf(5000000,9)", 2, "less than 100"),
        ("plan 1\nat 1s crash n3\nat 5s crash n4", 3, "never a node n4: at most 3"),
        ("plan 1\nat 5s oneway n1 -> zone:b for 5s", 2, "no zone b: 1"),
        ("plan 1\nat 5s cut groups(n1 | n9) for 5s\nat 1s join 4 over 1s", 2, "n9: at most 7"),
        ("plan 1\nworld zones=2\nat 5s cut zone c for 5s", 3, "no zone c"),
        ("plan 1\nlink loss=1% from n1 to n5", 2, "n5"),
        ("plan 1\nat 5s join 65537 over 1s", 2, "more than 65,536"),
        ("plan 1\nat 5s join 40000 over 1s\nat 6s join 40000 over 1s", 3, "at most 65536 nodes"),
        ("plan 1\nat 5s strangers 99999999 of n1 for 5s", 2, "more than 65,536"),
        ("plan 1\nat 5s twin random(18446744073709551615) memory=kept\nat 6s cut zone b for 1s", 3, "no zone b"),
    ] {
        let error = Plan::parse(text).unwrap_err();
        assert!(error.line == line && error.problem.contains(part), "{text:?}: {error}");
    }
}
