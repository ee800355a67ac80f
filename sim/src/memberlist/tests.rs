use super::*;

#[test]
fn the_formulas_are_memberlists() {
    let model = Model::swim();
    // 5 * log10(128) seconds; published as 10.54 s.
    assert!((10_530..=10_540).contains(&model.suspicion_min().as_millis()), "{:?}", model.suspicion_min());
    assert_eq!(model.retransmit_limit(), 12);
    assert_eq!(Model { members: 9, ..Model::swim() }.retransmit_limit(), 4);
}

#[test]
fn a_cluster_without_anomalies_stays_healthy() {
    let mut cluster = Cluster::new(Model::swim(), 1);
    cluster.run_to(Duration::from_secs(60));
    assert!(cluster.failures.is_empty() && cluster.is_healthy());
    // A ping and its answer a member and second.
    assert!((14_000..17_000).contains(&cluster.messages), "{}", cluster.messages);
}

#[test]
fn whoever_is_blocked_for_long_is_declared_failed_and_comes_back() {
    let mut cluster = Cluster::new(Model::swim(), 1);
    cluster.run_to(Duration::from_secs(15));
    cluster.block(&[7], true);
    cluster.run_to(Duration::from_secs(45));
    cluster.block(&[7], false);
    let observers = cluster.failures.iter().filter(|failure| failure.subject == 7).count();
    assert_eq!(observers, 127);
    cluster.run_to(Duration::from_secs(75));
    assert!(cluster.is_healthy());
}
